//! Requests from threads that are in no runtime.
//!
//! A thread that serves a guest's fault sends its request itself: waking a runtime's thread for it costs 20 to 40 us, and the guest waits.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::AsyncWrite;

use super::{FrameWriter, StreamError};
use crate::postcopy::wire::{Kind, Request};

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use]
pub enum Sent {
    /// The system has it.
    Sent,
    /// Only a part of it, or none: it goes out with the next call, and [`FrameWriter::flush`] should be called by a task.
    Queued,
}

/// Most bytes of requests that wait to be written: those of a thousand vCPUs.
const MOST_QUEUED: usize = 1024 * Request::BYTES;

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Sends a request without waiting, from a thread that may be in no runtime. The writer of a socket belongs to a runtime all
    /// the same, which has to run elsewhere.
    ///
    /// # Errors
    /// [`StreamError::Full`] if a thousand requests are queued: this one was not taken. What else can go wrong with
    /// a stream.
    pub fn try_write_request(&mut self, request: Request) -> Result<Sent, StreamError> {
        self.allow(Kind::Request)?;
        if self.queue.len() - self.written > MOST_QUEUED {
            return Err(StreamError::Full);
        }
        self.queue.drain(..std::mem::take(&mut self.written));
        self.queue.extend(request.encode());
        self.try_flush()
    }

    /// Sends what was only queued, likewise.
    ///
    /// # Errors
    /// What can go wrong with a stream.
    pub fn try_flush(&mut self) -> Result<Sent, StreamError> {
        let mut cx = Context::from_waker(Waker::noop());
        while self.written < self.queue.len() {
            let rest = &self.queue[self.written..];
            match Pin::new(&mut self.inner).poll_write(&mut cx, rest) {
                Poll::Ready(Ok(0)) => return Err(StreamError::Closed),
                Poll::Ready(Ok(bytes)) => self.written += bytes,
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => return Ok(Sent::Queued),
            }
        }
        self.queue.clear();
        self.written = 0;
        match Pin::new(&mut self.inner).poll_flush(&mut cx) {
            Poll::Ready(flushed) => flushed.map(|()| Sent::Sent).map_err(StreamError::from),
            Poll::Pending => Ok(Sent::Queued),
        }
    }
}
