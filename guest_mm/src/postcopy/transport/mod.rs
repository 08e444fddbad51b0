//! What streams run over: Unix sockets on one host, TCP between hosts, and TLS over either.
//!
//! [`connect()`] and [`Listener::accept`] do all that comes before the first frame, each under a deadline: the connection, TLS, the
//! source's hello. What fails there is a [`TransportError`] with the peer's address.
//!
//! With TLS each side presents a certificate, and takes only one that its authority has signed; the source also checks the sink's
//! name. Only TLS 1.3 is spoken, and no session is resumed, so each stream shows the certificates again.
//! A Unix socket without TLS is open to this user and to root.

mod address;
mod connect;
mod connection;
mod error;
mod listener;
mod socket;
mod tls;
mod unix;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use address::{Address, AddressError};
pub use connect::connect;
pub use connection::{Connection, ReadHalf, WriteHalf};
pub use error::{TlsFailure, TransportError};
pub use listener::{Incoming, Listener};
pub use socket::Socket;
pub use tls::{Tls, TlsError, TlsFiles};
pub use unix::{SocketFile, listening};

/// Whether peers are authenticated, and bytes are secret.
#[derive(Clone, Debug)]
pub enum Security {
    /// No: for a Unix socket, or a network that only friends are on.
    Plain,
    /// Yes, both ways.
    Tls(Tls),
}

/// How long a stream may take to begin, and how many may be beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// For a connection to be there.
    pub connect: Duration,
    /// For TLS and the greeting, together.
    pub handshake: Duration,
    /// Most peers of a listener that have not said hello. Further ones wait in the system's queue.
    pub half_open: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        let (connect, handshake) = (Duration::from_secs(10), Duration::from_secs(10));
        Limits { connect, handshake, half_open: 32 }
    }
}
