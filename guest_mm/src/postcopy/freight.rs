//! Pages of the guest on their way out.
#![allow(unsafe_code, reason = "a guest that rests is read where its pages lie")]

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use crate::addr::GfnRange;
use crate::fault::FaultError;
use crate::lift::Held;
use crate::pin::PinError;
use crate::protocol::Protocol;
use crate::service::{Guest, Lent, LentPiece};

use super::error::Trouble;
use super::stream::{FrameWriter, Packer, SendFile, StreamError};
use super::wire::{
    Digest, Encoding, MOST_PAGES, PAGE_BYTES, PagesHeader, Purpose, Role, is_zero, page_checksum,
};

/// Why pages could not be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum FreightError {
    /// They could not be read.
    #[error("guest memory cannot be read: {0}")]
    Memory(#[from] FaultError),
    /// They could not be held in their place.
    #[error("guest memory cannot be pinned: {0}")]
    Pin(#[from] PinError),
    /// They could not be written.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl FreightError {
    /// What that means for the migration, on the stream of this role.
    pub(super) fn on(self, role: Role) -> Trouble {
        match self {
            FreightError::Memory(error) => Trouble::Memory(error.to_string()),
            FreightError::Pin(error) => Trouble::Memory(error.to_string()),
            FreightError::Stream(error) => Trouble::stream(role, error),
        }
    }
}

/// What was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Shipped {
    pub(super) pages: u64,
    pub(super) zeroes: u64,
    /// Bytes of payload, as packed.
    pub(super) bytes: u64,
    pub(super) digest: Digest,
    /// The socket refers to them.
    by_reference: bool,
}

/// Whether the guest runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Guests<'k, 'g> {
    /// Its pages are copied before they go: nothing else keeps them from changing between checksum and socket.
    Run,
    /// Its pages go from where they lie, and are kept there where the socket refers to them.
    Rest(&'k Kept<'g>),
}

/// Pages that sockets refer to: nobody may move them before the sink has read them.
#[derive(Debug, Default)]
pub(super) struct Kept<'g>(Mutex<Vec<Lent<'g>>>);

impl<'g> Kept<'g> {
    fn keep(&self, lent: Lent<'g>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(lent);
    }

    /// The connection is over. A sink may still read what is in the socket: then the sum of a page that has changed is wrong.
    pub(super) fn let_go(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A payload whose pieces are of so many bytes in the mean is sent by reference: below, the copy costs less than a system call for each.
const BY_REFERENCE: usize = 16 * PAGE_BYTES;

/// Pages on their way, and where those are copied to that would change else. Small enough to stay in the cache.
pub(super) struct Freight {
    pages: Vec<u8>,
    packer: Packer,
    encoding: Encoding,
}

impl Freight {
    pub(super) fn new(encoding: Encoding) -> Freight {
        Freight { pages: Vec::new(), packer: Packer::new(), encoding }
    }

    /// Sends the pages of `range`, all in one block, as they are now.
    ///
    /// # Safety
    /// A guest that is said to rest does: nobody writes to its memory until this has returned, nor, as long as the connection lives,
    /// before what is kept is let go.
    pub(super) async unsafe fn send<'g, P: Protocol, W: SendFile + Unpin>(
        &mut self,
        guest: &'g Guest<P>,
        guests: Guests<'_, 'g>,
        range: GfnRange,
        purpose: Purpose,
        writer: &mut FrameWriter<W>,
    ) -> Result<Shipped, FreightError> {
        let count = range.frames() as usize;
        debug_assert!(count <= MOST_PAGES);
        let lent = match guests {
            Guests::Rest(kept) => guest.lend(range)?.map(|lent| (lent, kept)),
            Guests::Run => None,
        };
        let Some((lent, kept)) = lent else {
            if self.pages.len() < count * PAGE_BYTES {
                self.pages.resize(count * PAGE_BYTES, 0);
            }
            let bytes = &mut self.pages[..count * PAGE_BYTES];
            let lifted = guest.lift(range.start(), bytes)?;
            let mut load = Load::new(range, purpose);
            load.add(LentPiece { bytes, at: 0 }, |page| lifted[page] == Held::Bytes)?;
            return load.go(&mut self.packer, self.encoding, None, writer).await;
        };
        let mut load = Load::new(range, purpose);
        // SAFETY: this is what the caller promises.
        for piece in unsafe { lent.pieces() } {
            load.add(piece, |_| true)?;
        }
        let worth_it = load.header.raw_bytes() >= BY_REFERENCE * load.spans.len().max(1);
        let file = lent.file().filter(|_| worth_it && writer.sends_files());
        let shipped = load.go(&mut self.packer, self.encoding, file, writer).await?;
        if shipped.by_reference {
            kept.keep(lent);
        }
        Ok(shipped)
    }
}

/// A frame of pages that is being made up.
struct Load<'b> {
    header: PagesHeader,
    /// Those that are not zeroes, and where they lie in their file.
    slices: Vec<IoSlice<'b>>,
    spans: Vec<Range<u64>>,
}

impl<'b> Load<'b> {
    fn new(range: GfnRange, purpose: Purpose) -> Load<'b> {
        let header = PagesHeader::new(range.start(), purpose);
        Load { header, slices: Vec::new(), spans: Vec::new() }
    }

    /// Adds the pages of `piece`, of which those count that `hold` says hold something.
    fn add(
        &mut self,
        piece: LentPiece<'b>,
        hold: impl Fn(usize) -> bool,
    ) -> Result<(), StreamError> {
        let mut run = 0..0;
        for (at, page) in piece.bytes.as_chunks::<PAGE_BYTES>().0.iter().enumerate() {
            if !hold(at) || is_zero(page) {
                self.header.push_zero()?;
                continue;
            }
            self.header.push(page_checksum(page))?;
            if run.end != at {
                self.push(piece, &run);
                run = at..at;
            }
            run.end += 1;
        }
        self.push(piece, &run);
        Ok(())
    }

    fn push(&mut self, piece: LentPiece<'b>, run: &Range<usize>) {
        if !run.is_empty() {
            let bytes = run.start * PAGE_BYTES..run.end * PAGE_BYTES;
            self.spans.push(piece.at + bytes.start as u64..piece.at + bytes.end as u64);
            self.slices.push(IoSlice::new(&piece.bytes[bytes]));
        }
    }

    /// Sends it, packed, or by reference to `file`, or from where it lies.
    async fn go<W: SendFile + Unpin>(
        self,
        packer: &mut Packer,
        encoding: Encoding,
        file: Option<BorrowedFd<'_>>,
        writer: &mut FrameWriter<W>,
    ) -> Result<Shipped, FreightError> {
        let Load { mut header, slices, spans } = self;
        let digest = header.digest();
        let mut by_reference = false;
        match (packer.pack(&mut header, encoding, &slices)?, file) {
            (Some(packed), _) => writer.write_pages(&header, &[IoSlice::new(packed)]).await?,
            (None, Some(file)) => {
                writer.write_pages_of(&header, file, &spans).await?;
                by_reference = true;
            }
            (None, None) => writer.write_pages(&header, &slices).await?,
        }
        Ok(Shipped {
            pages: header.count() as u64,
            zeroes: (header.count() - header.nonzero()) as u64,
            bytes: header.payload_bytes() as u64,
            digest,
            by_reference,
        })
    }
}
