//! Sockets, and how they are set up for pages.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Bytes that a Unix socket holds on their way: two blocks, so that one side can fill one while the other takes the other. The
/// system gives less where `net.core.wmem_max` is less.
const UNIX_BUFFER: usize = 4 << 20;

/// An idle TCP connection is tried after so long, so often in such intervals, and given up.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMES: u32 = 4;

/// A TCP connection is given up when what was sent has not been acknowledged for so long, in ms.
const UNACKNOWLEDGED: u32 = 30_000;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// On this host.
    Unix(UnixStream),
    /// Anywhere.
    Tcp(TcpStream),
}

impl Socket {
    /// A Unix socket with room for pages.
    pub(super) fn unix(socket: UnixStream) -> io::Result<Socket> {
        // The sender's buffer is the only one (net/unix/af_unix.c, `unix_stream_sendmsg`).
        sockopt::set_socket_send_buffer_size(&socket, UNIX_BUFFER)?;
        Ok(Socket::Unix(socket))
    }

    /// A TCP socket on which a frame goes out at once, and a host that is gone is noticed. Its buffers are left to the kernel,
    /// which makes them larger (`net.ipv4.tcp_wmem`) than a program may ask for (`net.core.wmem_max`) on most hosts.
    pub(super) fn tcp(socket: TcpStream) -> io::Result<Socket> {
        socket.set_nodelay(true)?;
        let fd = socket.as_fd();
        sockopt::set_socket_keepalive(fd, true)?;
        sockopt::set_tcp_keepidle(fd, KEEP_ALIVE_AFTER)?;
        sockopt::set_tcp_keepintvl(fd, KEEP_ALIVE_EVERY)?;
        sockopt::set_tcp_keepcnt(fd, KEEP_ALIVE_TIMES)?;
        sockopt::set_tcp_user_timeout(fd, UNACKNOWLEDGED)?;
        Ok(Socket::Tcp(socket))
    }
}

/// The same call on whichever it is.
macro_rules! either {
    ($self:expr, $socket:ident => $call:expr) => {
        match $self.get_mut() {
            Socket::Unix($socket) => $call,
            Socket::Tcp($socket) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_read(cx, into))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, socket => Pin::new(socket).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, socket => Pin::new(socket).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}
