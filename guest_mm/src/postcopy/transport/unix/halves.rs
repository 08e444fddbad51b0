//! The two directions of a Unix socket, each woken for itself.
//!
//! Linux tells whoever waits for a Unix socket that there is room each time that the peer reads from it, also where there always was
//! (net/unix/af_unix.c, `unix_write_space`). A thread that waits for bytes is not to be woken by that: the answer to each request
//! would wake two threads for nothing. So the reader asks for bytes alone, and the writer for room only when it has found none.
#![allow(unsafe_code, reason = "says of descriptors that they stay the same")]

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::runtime::Handle;

/// What comes.
#[derive(Debug)]
pub(in super::super) struct UnixReader(AsyncFd<UnixStream>);

/// What goes. Dropped, it tells the peer that nothing more comes.
#[derive(Debug)]
pub(in super::super) struct UnixWriter {
    /// By a descriptor of its own: of one that is the reader's, too, the runtime would know only once.
    socket: Arc<UnixStream>,
    /// Who waits for room, from whatever thread.
    runtime: Handle,
    /// There while room is waited for.
    room: Option<AsyncFd<Arc<UnixStream>>>,
}

/// Both directions of `socket`, which does not block, in the runtime that this is called in.
pub(in super::super) fn halves(socket: UnixStream) -> io::Result<(UnixReader, UnixWriter)> {
    let writing = Arc::new(socket.try_clone()?);
    // SAFETY: the socket owns its descriptor, which is always the same.
    let reader = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
    let writer = UnixWriter { socket: writing, runtime: Handle::current(), room: None };
    Ok((UnixReader(reader), writer))
}

impl AsyncRead for UnixReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let room = into.initialize_unfilled();
            match ready.get_inner().read(room) {
                Ok(bytes) => {
                    // There was no more: what comes next is told.
                    if bytes != 0 && bytes < room.len() {
                        ready.clear_ready();
                    }
                    into.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl UnixWriter {
    /// What `send` comes to, once the socket has room for some of it.
    pub(in super::super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(&UnixStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match send(&self.socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                sent => {
                    self.room = None;
                    return Poll::Ready(sent);
                }
            }
            let room = match &self.room {
                Some(room) => room,
                None => {
                    let (socket, _in_it) = (Arc::clone(&self.socket), self.runtime.enter());
                    // SAFETY: the socket's descriptor is always the same, and open as long as somebody has the socket.
                    let room =
                        unsafe { AsyncFd::register_with_interest(socket, Interest::WRITABLE)? };
                    self.room.insert(room)
                }
            };
            // Room that comes after this is told again.
            ready!(room.poll_write_ready(cx))?.clear_ready();
        }
    }
}

impl AsyncWrite for UnixWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll(cx, |mut socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll(cx, |mut socket| socket.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.shutdown(Shutdown::Write))
    }
}

impl Drop for UnixWriter {
    fn drop(&mut self) {
        // A peer that has gone needs no word.
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    const ANSWER: usize = 4096;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (near, far)
    }

    #[test]
    fn who_waits_for_bytes_is_not_woken_by_room() {
        const TRIPS: u64 = 100;
        let (near, mut far) = pair();
        let peer = thread::spawn(move || {
            for _ in 0..TRIPS {
                far.write_all(&[1]).unwrap();
                // It is asleep again by then.
                thread::sleep(Duration::from_millis(1));
                far.read_exact(&mut [0; ANSWER]).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
        });
        let runtime = runtime();
        let parks = runtime.block_on(async {
            let (mut reader, mut writer) = halves(near).unwrap();
            let metrics = Handle::current().metrics();
            let before = metrics.worker_park_count(0);
            for _ in 0..TRIPS {
                reader.read_exact(&mut [0]).await.unwrap();
                writer.write_all(&[7; ANSWER]).await.unwrap();
            }
            metrics.worker_park_count(0) - before
        });
        peer.join().unwrap();
        assert!(parks < TRIPS * 3 / 2, "it slept {parks} times in {TRIPS} trips");
    }

    #[test]
    fn who_finds_no_room_is_woken_by_it() {
        let (near, mut far) = pair();
        let sent: Vec<u8> = (0..8 << 20).map(|at: u32| (at ^ at >> 8) as u8).collect();
        let bytes = sent.len();
        let peer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            let mut got = vec![0; bytes];
            far.read_exact(&mut got).unwrap();
            assert_eq!(far.read(&mut [0]).unwrap(), 0, "that was all");
            got
        });
        runtime().block_on(async {
            let (_reader, mut writer) = halves(near).unwrap();
            writer.write_all(&sent).await.unwrap();
        });
        assert!(peer.join().unwrap() == sent);
    }

    #[test]
    fn a_thread_of_no_runtime_may_write_and_find_no_room() {
        let (near, mut far) = pair();
        let runtime = runtime();
        let (_reader, mut writer) = runtime.block_on(async { halves(near).unwrap() });
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut write = || Pin::new(&mut writer).poll_write(&mut cx, &[1; 1 << 16]);
        while write().is_ready() {}
        far.read_exact(&mut [0; 1 << 16]).unwrap();
        assert!(matches!(write(), Poll::Ready(Ok(_))), "there is room");
        while write().is_ready() {}
        drop(runtime);
        assert!(matches!(write(), Poll::Ready(Err(_))), "nobody waits for room any more");
    }
}
