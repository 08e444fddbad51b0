//! The end of a stream that reads.

use std::io::IoSliceMut;
use std::time::Duration;

use tokio::io::AsyncRead;

use super::StreamError;
use super::intake::Intake;
use super::packing::{Unpacker, grow};
use crate::postcopy::wire::{
    self, Control, Encoding, FrameHeader, Kind, Lane, PAGE_BYTES, PagesHeader, Parts, Request,
    WireError, page_checksum,
};

/// The shortest beginning of a frame that has a payload: header, and body with one page. No more is read ahead where blocks come, so
/// that none of their bytes is.
const BEFORE_PAYLOAD: usize = FrameHeader::BYTES + 32;

/// Bytes that are read ahead where there are no payloads.
const READ_AHEAD: usize = 1024;

/// And where they are of one page: one call of the system reads a page that somebody waits for, and finds that no other is there.
const READ_PAGES: usize = 2 * (BEFORE_PAYLOAD + PAGE_BYTES);

/// Most bytes of a payload that are read before they are summed up: they fit the cache beside what else is there.
const AT_ONCE: usize = 256 << 10;

/// What comes over a stream that has pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BulkFrame {
    /// Pages. Their payload comes next, if they have one, and has to be read before anything else.
    Pages(PagesHeader),
    /// The end of what was sent before the fence of this number.
    Fence(u64),
    /// The peer has closed the stream, between two frames.
    End,
}

/// Reads one direction of one stream.
pub struct FrameReader<R> {
    intake: Intake<R>,
    lane: Lane,
    /// The frame whose body is being read, and how much of that is there.
    header: Option<FrameHeader>,
    body: Vec<u8>,
    filled: usize,
    parts: Parts,
    /// Bytes of a payload that are still to be read.
    owed: usize,
    packed: Vec<u8>,
    unpacked: Vec<u8>,
    unpacker: Unpacker,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads what comes over `lane`. The greeting is over.
    pub fn new(inner: R, lane: Lane) -> FrameReader<R> {
        let ahead = match lane {
            Lane::BulkToSink => BEFORE_PAYLOAD,
            Lane::UrgentToSink => READ_PAGES,
            Lane::ControlToSink | Lane::ControlToSource | Lane::UrgentToSource => READ_AHEAD,
        };
        FrameReader {
            intake: Intake::new(inner, ahead),
            lane,
            header: None,
            body: Vec::new(),
            filled: 0,
            parts: Parts::new(),
            owed: 0,
            packed: Vec::new(),
            unpacked: Vec::new(),
            unpacker: Unpacker::default(),
        }
    }

    /// Fails with [`StreamError::Silent`] once nothing has come for `patience` in the middle of a frame: a length that was damaged may
    /// promise bytes that nobody sends. Between frames a stream may rest. Needs a runtime with time.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> FrameReader<R> {
        self.intake.patience = Some(patience);
        self
    }

    /// The next message of a control stream.
    ///
    /// # Errors
    /// [`StreamError::Closed`] at its end; what else can go wrong with a stream.
    pub async fn read_control(&mut self) -> Result<Control, StreamError> {
        let header = self.frame().await?.ok_or(StreamError::Closed)?;
        let message = Control::from_body(&header, &self.body)?;
        self.parts.follow(&message)?;
        Ok(message)
    }

    /// The next request; none at the end of the stream.
    ///
    /// # Errors
    /// What can go wrong with a stream.
    pub async fn read_request(&mut self) -> Result<Option<Request>, StreamError> {
        let Some(header) = self.frame().await? else { return Ok(None) };
        Ok(Some(Request::from_body(&header, &self.body)?))
    }

    /// The next frame of a stream that has pages.
    ///
    /// # Errors
    /// [`StreamError::Abandoned`] if the payload of the last one has not been read; what else can go wrong with a stream.
    pub async fn next_pages(&mut self) -> Result<BulkFrame, StreamError> {
        if self.owed != 0 {
            return Err(StreamError::Abandoned);
        }
        let Some(header) = self.frame().await? else { return Ok(BulkFrame::End) };
        if header.kind() == Kind::Fence {
            return Ok(BulkFrame::Fence(wire::fence(&header, &self.body)?));
        }
        let pages = PagesHeader::from_body(&header, &self.body)?;
        self.owed = pages.payload_bytes();
        Ok(BulkFrame::Pages(pages))
    }

    /// Reads the payload of `header`, which came last: the pages that are not zeroes go to `buffers`, in order, and are checked.
    /// Every buffer holds whole pages. After an error their bytes mean nothing.
    ///
    /// # Errors
    /// [`WireError::Page`] for one that is not what was summed up, [`WireError::Compressed`]; [`StreamError::Buffers`] unless there is
    /// room for exactly these pages; what else can go wrong with a stream.
    pub async fn read_into(
        &mut self,
        header: &PagesHeader,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Result<(), StreamError> {
        let given = buffers.iter().map(|buffer| buffer.len()).sum();
        let whole = buffers.iter().all(|buffer| buffer.len().is_multiple_of(PAGE_BYTES));
        self.check_buffers(header, header.raw_bytes(), if whole { given } else { 0 })?;
        if header.encoding() == Encoding::Raw {
            let mut at = 0;
            for buffer in buffers {
                self.pages(header, at, buffer).await?;
                at += buffer.len() / PAGE_BYTES;
            }
            return Ok(());
        }
        self.receive_packed().await?;
        grow(&mut self.unpacked, given);
        let mut rest = &mut self.unpacked[..given];
        unpack(&mut self.unpacker, header, &self.packed, rest)?;
        for buffer in buffers {
            let (pages, behind) = rest.split_at_mut(buffer.len());
            buffer.copy_from_slice(pages);
            rest = behind;
        }
        Ok(())
    }

    /// Reads the payload of `header`, which came last, to `into`: [`count`](PagesHeader::count) pages, those of zeroes filled in. Raw
    /// pages are read to where they stay. After an error the bytes mean nothing.
    ///
    /// # Errors
    /// As [`read_into`](FrameReader::read_into).
    pub async fn read_payload(
        &mut self,
        header: &PagesHeader,
        into: &mut [u8],
    ) -> Result<(), StreamError> {
        self.check_buffers(header, header.count() * PAGE_BYTES, into.len())?;
        if header.encoding() == Encoding::Raw {
            let mut at = 0;
            for run in header.nonzero_runs() {
                let pages = run.len();
                self.pages(header, at, &mut into[run.start * PAGE_BYTES..run.end * PAGE_BYTES])
                    .await?;
                at += pages;
            }
        } else {
            self.receive_packed().await?;
            unpack(&mut self.unpacker, header, &self.packed, &mut into[..header.raw_bytes()])?;
            spread(header, into);
        }
        for run in header.zero_runs() {
            into[run.start * PAGE_BYTES..run.end * PAGE_BYTES].fill(0);
        }
        Ok(())
    }

    /// Reads the payload of the frame that came last and forgets it: nobody wants these pages.
    ///
    /// # Errors
    /// What can go wrong with a stream.
    pub async fn skip_payload(&mut self) -> Result<(), StreamError> {
        grow(&mut self.packed, self.owed.min(AT_ONCE));
        while self.owed != 0 {
            let bytes = self.owed.min(AT_ONCE);
            self.owed -= self.intake.some(&mut self.packed[..bytes]).await?;
        }
        Ok(())
    }

    fn check_buffers(
        &self,
        header: &PagesHeader,
        needed: usize,
        given: usize,
    ) -> Result<(), StreamError> {
        if self.owed != header.payload_bytes() {
            return Err(StreamError::Abandoned);
        }
        if given != needed {
            return Err(StreamError::Buffers { given, needed, encoding: header.encoding() });
        }
        Ok(())
    }

    /// Fills `run` with raw pages, the first of which is `at` of those in the payload, and checks them.
    async fn pages(
        &mut self,
        header: &PagesHeader,
        at: usize,
        run: &mut [u8],
    ) -> Result<(), StreamError> {
        let (mut filled, mut checked) = (0, 0);
        while filled < run.len() {
            let until = run.len().min(filled + AT_ONCE);
            let bytes = self.intake.some(&mut run[filled..until]).await?;
            self.owed -= bytes;
            filled += bytes;
            let whole = filled / PAGE_BYTES;
            check(header, at + checked, &run[checked * PAGE_BYTES..whole * PAGE_BYTES])?;
            checked = whole;
        }
        Ok(())
    }

    /// Reads a packed payload.
    async fn receive_packed(&mut self) -> Result<(), StreamError> {
        let bytes = self.owed;
        self.packed.clear();
        self.packed.resize(bytes, 0);
        while self.owed != 0 {
            let (at, part) = (bytes - self.owed, self.owed.min(AT_ONCE));
            self.owed -= self.intake.some(&mut self.packed[at..at + part]).await?;
        }
        Ok(())
    }

    /// The next frame's header, its body in `self.body`; none at the end of the stream. Nothing is lost if it is dropped meanwhile.
    async fn frame(&mut self) -> Result<Option<FrameHeader>, StreamError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(bytes) = self.intake.header().await? else { return Ok(None) };
                let header = FrameHeader::decode(&bytes, self.lane)?;
                // Within the limit of its kind.
                self.body.clear();
                self.body.resize(header.body_bytes(), 0);
                self.filled = 0;
                *self.header.insert(header)
            }
        };
        while self.filled < self.body.len() {
            self.filled += self.intake.some(&mut self.body[self.filled..]).await?;
        }
        self.header = None;
        Ok(Some(header))
    }
}

/// Unpacks `packed` to `into`, which holds the pages that are not zeroes, and checks them.
fn unpack(
    unpacker: &mut Unpacker,
    header: &PagesHeader,
    packed: &[u8],
    into: &mut [u8],
) -> Result<(), StreamError> {
    unpacker.unpack(header, packed, into)?;
    Ok(check(header, 0, into)?)
}

/// Fails unless `pages`, the first of which is `at` of those in the payload, are what was summed up.
fn check(header: &PagesHeader, at: usize, pages: &[u8]) -> Result<(), WireError> {
    let (pages, _) = pages.as_chunks();
    let mut sums = pages.iter().zip(&header.checksums()[at..]);
    match sums.position(|(page, sum)| page_checksum(page) != *sum) {
        Some(wrong) => {
            let gfn = header.nonzero_pages().nth(at + wrong).unwrap_or(header.first());
            Err(WireError::Page(gfn))
        }
        None => Ok(()),
    }
}

/// Moves the pages at the beginning of `into` to where they belong. The last first: none moves down, so none is in another's way.
fn spread(header: &PagesHeader, into: &mut [u8]) {
    let runs: Vec<_> = header.nonzero_runs().collect();
    let mut end = header.nonzero();
    for run in runs.into_iter().rev() {
        let start = end - run.len();
        into.copy_within(start * PAGE_BYTES..end * PAGE_BYTES, run.start * PAGE_BYTES);
        end = start;
    }
}
