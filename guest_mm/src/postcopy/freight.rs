//! Pages of the guest on their way out.

use std::io::IoSlice;

use tokio::io::AsyncWrite;

use crate::addr::GfnRange;
use crate::fault::FaultError;
use crate::lift::Held;
use crate::protocol::Protocol;
use crate::service::Guest;

use super::error::Trouble;
use super::stream::{FrameWriter, Packer, StreamError};
use super::wire::{
    Digest, Encoding, MOST_PAGES, PAGE_BYTES, PagesHeader, Purpose, Role, is_zero, page_checksum,
};

/// Why pages could not be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum FreightError {
    /// They could not be read.
    #[error("guest memory cannot be read: {0}")]
    Memory(#[from] FaultError),
    /// They could not be written.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl FreightError {
    /// What that means for the migration, on the stream of this role.
    pub(super) fn on(self, role: Role) -> Trouble {
        match self {
            FreightError::Memory(error) => Trouble::Memory(error.to_string()),
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
}

/// Where pages are copied to before they go: while the guest runs, nothing else keeps them from changing between checksum and
/// socket. Small enough to stay in the cache.
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
    pub(super) async fn send<P: Protocol, W: AsyncWrite + Unpin>(
        &mut self,
        guest: &Guest<P>,
        range: GfnRange,
        purpose: Purpose,
        writer: &mut FrameWriter<W>,
    ) -> Result<Shipped, FreightError> {
        let count = range.frames() as usize;
        debug_assert!(count <= MOST_PAGES);
        if self.pages.len() < count * PAGE_BYTES {
            self.pages.resize(count * PAGE_BYTES, 0);
        }
        let bytes = &mut self.pages[..count * PAGE_BYTES];
        let lifted = guest.lift(range.start(), bytes)?;
        let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
        let mut header = PagesHeader::new(range.start(), purpose);
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        let mut run = 0..0;
        for (at, (page, held)) in pages.iter().zip(&lifted).enumerate() {
            if *held != Held::Bytes || is_zero(page) {
                header.push_zero().map_err(StreamError::from)?;
                continue;
            }
            header.push(page_checksum(page)).map_err(StreamError::from)?;
            if run.end == at {
                run.end += 1;
                continue;
            }
            push(&mut slices, bytes, &run);
            run = at..at + 1;
        }
        push(&mut slices, bytes, &run);
        let digest = header.digest();
        match self.packer.pack(&mut header, self.encoding, &slices)? {
            Some(packed) => writer.write_pages(&header, &[IoSlice::new(packed)]).await?,
            None => writer.write_pages(&header, &slices).await?,
        }
        Ok(Shipped {
            pages: range.frames(),
            zeroes: (count - header.nonzero()) as u64,
            bytes: header.payload_bytes() as u64,
            digest,
        })
    }
}

fn push<'b>(slices: &mut Vec<IoSlice<'b>>, bytes: &'b [u8], run: &std::ops::Range<usize>) {
    if !run.is_empty() {
        slices.push(IoSlice::new(&bytes[run.start * PAGE_BYTES..run.end * PAGE_BYTES]));
    }
}
