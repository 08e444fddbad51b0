//! The end of a stream that writes.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::StreamError;
use crate::postcopy::wire::{self, Control, Kind, Lane, PagesHeader, Parts, Request, WireError};

/// Writes one direction of one stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    pub(super) inner: W,
    lane: Lane,
    pub(super) patience: Option<Duration>,
    parts: Parts,
    /// Whole frames, but for payloads: `queue[written..]` is still to be written.
    pub(super) queue: Vec<u8>,
    pub(super) written: usize,
    /// A payload is being written, or its writing was given up.
    pub(super) torn: bool,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes what goes over `lane`. The greeting is over.
    pub fn new(inner: W, lane: Lane) -> FrameWriter<W> {
        FrameWriter {
            inner,
            lane,
            patience: None,
            parts: Parts::new(),
            queue: Vec::new(),
            written: 0,
            torn: false,
        }
    }

    /// Fails with [`StreamError::Stalled`] once the peer has taken nothing for `patience`. Needs a runtime with time.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> FrameWriter<W> {
        self.patience = Some(patience);
        self
    }

    /// Writes a message of the control stream.
    ///
    /// # Errors
    /// [`StreamError::Wire`] for a message that may not go over this stream now: nothing was written. What else can go wrong
    /// with a stream.
    pub async fn write_control(&mut self, message: &Control) -> Result<(), StreamError> {
        self.allow(message.kind())?;
        self.parts.clone().follow(message)?;
        message.encode(&mut self.queue)?;
        self.parts.follow(message)?;
        self.drain().await
    }

    /// Writes a request for a page.
    ///
    /// # Errors
    /// What can go wrong with a stream.
    pub async fn write_request(&mut self, request: Request) -> Result<(), StreamError> {
        self.allow(Kind::Request)?;
        self.queue.extend(request.encode());
        self.drain().await
    }

    /// Writes a fence.
    ///
    /// # Errors
    /// What can go wrong with a stream.
    pub async fn write_fence(&mut self, number: u64) -> Result<(), StreamError> {
        self.allow(Kind::Fence)?;
        wire::put_fence(number, &mut self.queue);
        self.drain().await
    }

    /// Writes `header` and `payload`, which is as long as the header says, from where it lies. Its bytes must not change between
    /// their summing up and the end of this call, or the sink takes them for damaged.
    ///
    /// # Errors
    /// [`StreamError::Buffers`] for a payload of another length: nothing was written. What else can go wrong with a stream.
    pub async fn write_pages(
        &mut self,
        header: &PagesHeader,
        payload: &[IoSlice<'_>],
    ) -> Result<(), StreamError> {
        self.queue_pages(header, payload.iter().map(|part| part.len()).sum())?;
        if payload.is_empty() {
            return self.drain().await;
        }
        self.torn = true;
        let mut slices = Vec::with_capacity(1 + payload.len());
        slices.push(IoSlice::new(&self.queue[self.written..]));
        slices.extend_from_slice(payload);
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let write = poll_fn(|cx| Pin::new(&mut self.inner).poll_write_vectored(cx, rest));
            let bytes = progress(self.patience, write).await?;
            IoSlice::advance_slices(&mut rest, bytes);
        }
        self.queue.clear();
        self.written = 0;
        waiting(self.patience, self.inner.flush()).await?;
        self.torn = false;
        Ok(())
    }

    /// Writes what earlier calls left: those that were dropped, and requests that were only queued.
    ///
    /// # Errors
    /// What can go wrong with a stream.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        self.whole()?;
        self.drain().await
    }

    /// Ends the stream: the peer finds its end behind the last frame.
    ///
    /// # Errors
    /// What can go wrong with a stream.
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        self.flush().await?;
        waiting(self.patience, self.inner.shutdown()).await
    }

    /// Queues `header`, for a payload of `given` bytes.
    pub(super) fn queue_pages(
        &mut self,
        header: &PagesHeader,
        given: usize,
    ) -> Result<(), StreamError> {
        self.allow(Kind::Pages)?;
        let (kind, lane) = (Kind::Pages, self.lane);
        if header.purpose().lane() != lane {
            return Err(WireError::WrongLane { kind, lane }.into());
        }
        let needed = header.payload_bytes();
        if given != needed {
            return Err(StreamError::Buffers { given, needed, encoding: header.encoding() });
        }
        Ok(header.encode(&mut self.queue)?)
    }

    pub(super) fn allow(&self, kind: Kind) -> Result<(), StreamError> {
        self.whole()?;
        let lane = self.lane;
        if !kind.belongs_to(lane) {
            return Err(WireError::WrongLane { kind, lane }.into());
        }
        Ok(())
    }

    fn whole(&self) -> Result<(), StreamError> {
        if self.torn { Err(StreamError::Abandoned) } else { Ok(()) }
    }

    /// Writes the queue. Nothing of it is lost if this is dropped meanwhile.
    pub(super) async fn drain(&mut self) -> Result<(), StreamError> {
        while self.written < self.queue.len() {
            let write = self.inner.write(&self.queue[self.written..]);
            self.written += progress(self.patience, write).await?;
        }
        self.queue.clear();
        self.written = 0;
        waiting(self.patience, self.inner.flush()).await
    }
}

/// What `write` comes to, unless that takes longer than `patience`, or nothing can be written any more.
pub(super) async fn progress(
    patience: Option<Duration>,
    write: impl Future<Output = io::Result<usize>>,
) -> Result<usize, StreamError> {
    match waiting(patience, write).await? {
        0 => Err(io::Error::from(io::ErrorKind::WriteZero).into()),
        bytes => Ok(bytes),
    }
}

pub(super) async fn waiting<T>(
    patience: Option<Duration>,
    write: impl Future<Output = io::Result<T>>,
) -> Result<T, StreamError> {
    let Some(patience) = patience else { return Ok(write.await?) };
    match tokio::time::timeout(patience, write).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(StreamError::Stalled(patience)),
    }
}
