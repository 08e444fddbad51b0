//! A stream that has been greeted, and its two directions.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::sendfile;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, tcp};
use tokio_rustls::TlsStream;

use super::Socket;
use super::unix::{UnixReader, UnixWriter, halves};
use crate::postcopy::stream::SendFile;

/// A connection with a peer, of whatever kind.
#[derive(Debug)]
pub enum Connection {
    /// Bytes as they are.
    Plain(Socket),
    /// Inside of TLS.
    Tls(Box<TlsStream<Socket>>),
}

/// The direction from the peer.
#[derive(Debug)]
pub struct ReadHalf(Reading);

/// The direction to the peer. Dropped, it tells the peer that nothing more comes; behind TLS only
/// [`FrameWriter::finish`](crate::postcopy::stream::FrameWriter::finish) does.
#[derive(Debug)]
pub struct WriteHalf(Writing);

#[derive(Debug)]
enum Reading {
    Unix(UnixReader),
    Tcp(tcp::OwnedReadHalf),
    Tls(tokio::io::ReadHalf<Box<TlsStream<Socket>>>),
}

#[derive(Debug)]
enum Writing {
    Unix(UnixWriter),
    Tcp(tcp::OwnedWriteHalf),
    Tls(tokio::io::WriteHalf<Box<TlsStream<Socket>>>),
}

impl Connection {
    /// Its two directions, each for a task of its own, and woken by the runtime that this is called in. Those inside of TLS share a
    /// lock, and stay with the runtime that the connection was made in, which has to run on.
    ///
    /// # Errors
    /// The runtime cannot take the socket.
    pub fn split(self) -> io::Result<(ReadHalf, WriteHalf)> {
        Ok(match self {
            Connection::Plain(Socket::Unix(socket)) => {
                let (read, write) = halves(socket.into_std()?)?;
                (ReadHalf(Reading::Unix(read)), WriteHalf(Writing::Unix(write)))
            }
            Connection::Plain(Socket::Tcp(socket)) => {
                let (read, write) = TcpStream::from_std(socket.into_std()?)?.into_split();
                (ReadHalf(Reading::Tcp(read)), WriteHalf(Writing::Tcp(write)))
            }
            Connection::Tls(tls) => {
                let (read, write) = tokio::io::split(tls);
                (ReadHalf(Reading::Tls(read)), WriteHalf(Writing::Tls(write)))
            }
        })
    }
}

/// The same call on whichever it is.
macro_rules! whichever {
    ($inner:expr, $kind:ident { $($variant:ident),* }, $stream:ident => $call:expr) => {
        match $inner {
            $($kind::$variant($stream) => $call,)*
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        whichever!(self.get_mut(), Connection { Plain, Tls }, it => Pin::new(it).poll_read(cx, into))
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        whichever!(&mut self.get_mut().0, Reading { Unix, Tcp, Tls }, it => Pin::new(it).poll_read(cx, into))
    }
}

macro_rules! writes {
    ($type:ident, $self:ident => $inner:expr, $kind:ident $variants:tt) => {
        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                let $self = self.get_mut();
                whichever!($inner, $kind $variants, it => Pin::new(it).poll_write(cx, bytes))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let $self = self.get_mut();
                whichever!($inner, $kind $variants, it => Pin::new(it).poll_write_vectored(cx, slices))
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                whichever!($inner, $kind $variants, it => Pin::new(it).poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                whichever!($inner, $kind $variants, it => Pin::new(it).poll_shutdown(cx))
            }
        }
    };
}
writes!(Connection, it => it, Connection { Plain, Tls });
writes!(WriteHalf, it => &mut it.0, Writing { Unix, Tcp, Tls });

impl SendFile for WriteHalf {
    fn sends_files(&self) -> bool {
        !matches!(self.0, Writing::Tls(_))
    }

    fn poll_send_file(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        file: BorrowedFd<'_>,
        span: Range<u64>,
    ) -> Poll<io::Result<usize>> {
        let (mut from, bytes) = (span.start, (span.end - span.start) as usize);
        match &mut self.get_mut().0 {
            Writing::Unix(half) => {
                half.poll(cx, |socket| Ok(sendfile(socket, file, Some(&mut from), bytes)?))
            }
            Writing::Tcp(half) => {
                let socket: &TcpStream = (*half).as_ref();
                loop {
                    ready!(socket.poll_write_ready(cx))?;
                    let send = || Ok(sendfile(socket, file, Some(&mut from), bytes)?);
                    match socket.try_io(Interest::WRITABLE, send) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        sent => return Poll::Ready(sent),
                    }
                }
            }
            Writing::Tls(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }
}
