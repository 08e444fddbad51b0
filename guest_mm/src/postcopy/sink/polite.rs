//! A stream that is read with courtesy.

use std::io;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

use crate::schedule::Courtesy;

/// Gives way before it reads on, while somebody is in a hurry, and counts what it has read.
#[derive(Debug)]
pub(super) struct Polite<'c, R> {
    inner: R,
    courtesy: Courtesy<'c>,
    come: &'c AtomicU64,
}

impl<'c, R> Polite<'c, R> {
    /// Reads `inner`; `signs` counts up with what somebody was in a hurry for, and `come` with each byte.
    pub(super) fn new(inner: R, signs: &'c AtomicU64, come: &'c AtomicU64) -> Polite<'c, R> {
        Polite { inner, courtesy: Courtesy::new(signs), come }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Polite<'_, R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polite = self.get_mut();
        polite.courtesy.give_way();
        let before = into.filled().len();
        let read = Pin::new(&mut polite.inner).poll_read(cx, into);
        polite.come.fetch_add((into.filled().len() - before) as u64, Relaxed);
        read
    }
}
