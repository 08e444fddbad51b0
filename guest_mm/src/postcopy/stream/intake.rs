//! Bytes that come in: a little is read ahead, so that a small frame takes one call of the system.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::StreamError;
use crate::postcopy::wire::FrameHeader;

/// What reads, and what it has read ahead.
pub(super) struct Intake<R> {
    inner: R,
    pub(super) patience: Option<Duration>,
    /// `ahead[start..end]` is still to be taken.
    ahead: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> Intake<R> {
    /// One that reads at most `ahead` bytes ahead, counted from the beginning of a frame; at least a frame's header.
    pub(super) fn new(inner: R, ahead: usize) -> Intake<R> {
        assert!(ahead >= FrameHeader::BYTES);
        Intake { inner, patience: None, ahead: vec![0; ahead].into(), start: 0, end: 0 }
    }

    /// The header of the next frame; none at the end of the stream. Nothing is lost if it is dropped meanwhile.
    pub(super) async fn header(&mut self) -> Result<Option<[u8; FrameHeader::BYTES]>, StreamError> {
        self.ahead.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            if let Some(header) = self.ahead[..self.end].first_chunk() {
                self.start = FrameHeader::BYTES;
                return Ok(Some(*header));
            }
            // Between two frames there is nothing to wait for.
            let patience = self.patience.filter(|_| self.end != 0);
            match waiting(patience, self.inner.read(&mut self.ahead[self.end..])).await? {
                0 if self.end == 0 => return Ok(None),
                0 => return Err(StreamError::CutShort),
                bytes => self.end += bytes,
            }
        }
    }

    /// Reads some bytes of a frame; at least one. Nothing is lost if it is dropped meanwhile.
    pub(super) async fn some(&mut self, into: &mut [u8]) -> Result<usize, StreamError> {
        let bytes = into.len().min(self.end - self.start);
        if bytes != 0 {
            into[..bytes].copy_from_slice(&self.ahead[self.start..self.start + bytes]);
            self.start += bytes;
            return Ok(bytes);
        }
        match waiting(self.patience, self.inner.read(into)).await? {
            0 => Err(StreamError::CutShort),
            bytes => Ok(bytes),
        }
    }
}

/// What `read` comes to, unless that takes longer than `patience`.
async fn waiting(
    patience: Option<Duration>,
    read: impl Future<Output = io::Result<usize>>,
) -> Result<usize, StreamError> {
    let Some(patience) = patience else { return Ok(read.await?) };
    match tokio::time::timeout(patience, read).await {
        Ok(read) => Ok(read?),
        Err(_) => Err(StreamError::Silent(patience)),
    }
}
