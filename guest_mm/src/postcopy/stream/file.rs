//! Payloads that lie in a file, sent by reference: the peer's read is the only time that their bytes are copied.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::writer::{progress, waiting};
use super::{FrameWriter, StreamError};
use crate::postcopy::wire::PagesHeader;

/// What may send bytes of a file without a copy.
pub trait SendFile: AsyncWrite {
    /// Whether it can: what is enciphered has to be copied.
    fn sends_files(&self) -> bool;

    /// Sends some of the bytes at `span` of `file`, as [`poll_write`](AsyncWrite::poll_write) does. They are read when the peer
    /// reads them, and must not change before.
    ///
    /// # Errors
    /// What the system says.
    fn poll_send_file(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        file: BorrowedFd<'_>,
        span: Range<u64>,
    ) -> Poll<io::Result<usize>>;
}

impl<W: SendFile + Unpin> FrameWriter<W> {
    /// Whether [`write_pages_of`](FrameWriter::write_pages_of) can be used.
    pub fn sends_files(&self) -> bool {
        self.inner.sends_files()
    }

    /// As [`write_pages`](FrameWriter::write_pages), of a payload that is what `spans` of `file` are, until the peer has read it.
    ///
    /// # Errors
    /// As [`write_pages`](FrameWriter::write_pages).
    pub async fn write_pages_of(
        &mut self,
        header: &PagesHeader,
        file: BorrowedFd<'_>,
        spans: &[Range<u64>],
    ) -> Result<(), StreamError> {
        let given = spans.iter().map(|span| (span.end - span.start) as usize).sum();
        self.queue_pages(header, given)?;
        self.torn = true;
        self.drain().await?;
        for span in spans {
            let mut rest = span.clone();
            while !rest.is_empty() {
                let send =
                    poll_fn(|cx| Pin::new(&mut self.inner).poll_send_file(cx, file, rest.clone()));
                rest.start += progress(self.patience, send).await? as u64;
            }
        }
        waiting(self.patience, poll_fn(|cx| Pin::new(&mut self.inner).poll_flush(cx))).await?;
        self.torn = false;
        Ok(())
    }
}
