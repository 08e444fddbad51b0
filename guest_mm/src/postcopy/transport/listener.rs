//! The sink's ear.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::{
    Address, Connection, Limits, Security, Socket, SocketFile, TlsFailure, TransportError,
    listening,
};
use crate::postcopy::stream::{read_hello, write_welcome};
use crate::postcopy::wire::{Hello, Reason, Refusal, Versions, Welcome};

/// Connections that wait in the system's queue: all streams of some migrations.
const BACKLOG: i32 = 64;

/// How long a listener rests when the system has no connection for it: for want of descriptors, mostly.
const REST: Duration = Duration::from_millis(100);

/// Takes streams from sources. A socket in the file system is removed with it.
#[derive(Debug)]
pub struct Listener {
    ear: Ear,
    address: Address,
    security: Security,
    limits: Limits,
    beginning: JoinSet<Result<Incoming, TransportError>>,
}

#[derive(Debug)]
enum Ear {
    /// The file goes first: who sees it is not refused.
    Unix(SocketFile, UnixListener),
    Tcp(TcpListener),
}

/// A source that has said hello, and waits for an answer.
#[derive(Debug)]
pub struct Incoming {
    connection: Connection,
    hello: Hello,
    version: u16,
    peer: String,
    patience: Duration,
}

impl Listener {
    /// Listens on `address`. In the file system its socket is open to this user only.
    ///
    /// # Errors
    /// [`TransportError::Bind`] or [`TransportError::Exists`].
    pub async fn bind(
        address: &Address,
        security: Security,
        limits: Limits,
    ) -> Result<Listener, TransportError> {
        let failed = |source: io::Error| match (source.kind(), address) {
            (io::ErrorKind::AlreadyExists, Address::Unix(_)) => {
                TransportError::Exists(address.clone())
            }
            _ => TransportError::Bind { address: address.clone(), source },
        };
        let (ear, address) = match address {
            Address::Unix(path) => {
                let (socket, file) = listening(path, BACKLOG).map_err(failed)?;
                let socket = UnixListener::from_std(socket.into()).map_err(failed)?;
                (Ear::Unix(file, socket), address.clone())
            }
            Address::Tcp { host, port } => {
                let socket = TcpListener::bind((host.as_str(), *port)).await.map_err(failed)?;
                let port = socket.local_addr().map_err(failed)?.port();
                (Ear::Tcp(socket), Address::Tcp { host: host.clone(), port })
            }
        };
        Ok(Listener { ear, address, security, limits, beginning: JoinSet::new() })
    }

    /// Where it listens; the port is the one that it has.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it listens on `address`, and others can find it there.
    pub fn is_at(&self, address: &Address) -> bool {
        self.address == *address
            && match &self.ear {
                Ear::Unix(file, _) => file.is_there(),
                Ear::Tcp(_) => true,
            }
    }

    /// Whether streams that begin from now on are to prove who they are.
    pub fn secure_with(&mut self, security: Security) {
        self.security = security;
    }

    /// The next stream whose source has said hello. No source waits for another that is slow, unless as many are as
    /// [`Limits::half_open`] says. Nothing is lost if this is dropped meanwhile.
    ///
    /// # Errors
    /// [`TransportError`] for a peer that does not get so far, or for a connection that the system does not give. The listener goes
    /// on: call again.
    pub async fn accept(&mut self) -> Result<Incoming, TransportError> {
        loop {
            let room = self.beginning.len() < self.limits.half_open;
            let accepted = tokio::select! {
                Some(begun) = self.beginning.join_next() => match begun {
                    Ok(begun) => return begun,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // Its runtime ends.
                        Err(_) => continue,
                    },
                },
                accepted = self.ear.accept(), if room => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    let (security, patience) = (self.security.clone(), self.limits.handshake);
                    self.beginning.spawn(greeted(socket, peer, security, patience));
                }
                Err(error) => {
                    sleep(REST).await;
                    return Err(TransportError::Accept(error));
                }
            }
        }
    }
}

impl Ear {
    async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Ear::Unix(file, socket) => {
                let (stream, _) = socket.accept().await?;
                let peer = match stream.peer_cred()?.pid() {
                    Some(pid) => format!("process {pid} on unix:{}", file.path().display()),
                    None => format!("a process on unix:{}", file.path().display()),
                };
                Ok((Socket::unix(stream)?, peer))
            }
            Ear::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                Ok((Socket::tcp(stream)?, format!("tcp:{peer}")))
            }
        }
    }
}

async fn greeted(
    socket: Socket,
    peer: String,
    security: Security,
    patience: Duration,
) -> Result<Incoming, TransportError> {
    let begun = timeout(patience, begin(socket, &peer, &security)).await;
    let (connection, hello) = begun
        .map_err(|_| TransportError::HandshakeTimeout { peer: peer.clone(), after: patience })??;
    match Welcome::to(&hello, Versions::SPOKEN) {
        Welcome::Chosen(version) => Ok(Incoming { connection, hello, version, peer, patience }),
        Welcome::Refused(refusal, reason) => {
            let theirs = hello.versions;
            let incoming = Incoming { connection, hello, version: 0, peer, patience };
            let peer = incoming.peer.clone();
            incoming.refuse(refusal, reason).await?;
            Err(TransportError::Versions { peer, theirs })
        }
    }
}

async fn begin(
    socket: Socket,
    peer: &str,
    security: &Security,
) -> Result<(Connection, Hello), TransportError> {
    let mut connection = match security {
        Security::Plain => Connection::Plain(socket),
        Security::Tls(tls) => {
            let accepted = TlsAcceptor::from(tls.server.clone()).accept(socket).await;
            let stream = accepted.map_err(|error| TransportError::Tls {
                peer: peer.to_owned(),
                failure: TlsFailure::of(error, ""),
            })?;
            Connection::Tls(Box::new(TlsStream::from(stream)))
        }
    };
    match read_hello(&mut connection).await {
        Ok(hello) => Ok((connection, hello)),
        Err(source) => Err(TransportError::Greeting { peer: peer.to_owned(), source }),
    }
}

impl Incoming {
    /// What the source said.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Who it is, for a message.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The version that both speak.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Takes the stream. Frames follow.
    ///
    /// # Errors
    /// If the source has gone meanwhile.
    pub async fn welcome(mut self) -> Result<Connection, TransportError> {
        let welcome = Welcome::Chosen(self.version);
        self.answer(&welcome).await?;
        Ok(self.connection)
    }

    /// Does not take it.
    ///
    /// # Errors
    /// If the source has gone meanwhile.
    pub async fn refuse(mut self, refusal: Refusal, reason: Reason) -> Result<(), TransportError> {
        self.answer(&Welcome::Refused(refusal, reason)).await?;
        // That nothing more comes is of no interest to a source that has gone.
        let _ = timeout(self.patience, self.connection.shutdown()).await;
        Ok(())
    }

    async fn answer(&mut self, welcome: &Welcome) -> Result<(), TransportError> {
        let (peer, after) = (self.peer.clone(), self.patience);
        match timeout(after, write_welcome(&mut self.connection, welcome)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(TransportError::Greeting { peer, source }),
            Err(_) => Err(TransportError::HandshakeTimeout { peer, after }),
        }
    }
}
