//! The source's way to a sink.

use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use super::error::inside;
use super::{Address, Connection, Limits, Security, Socket, TlsFailure, TransportError, tls};
use crate::postcopy::stream::{StreamError, greet};
use crate::postcopy::wire::Hello;

/// Connects to a sink and says hello. The connection, and the version that the sink has chosen.
///
/// # Errors
/// [`TransportError`], with the sink's address. Where the sink does not take this side's certificate, it says so only behind the
/// handshake: that is a [`TransportError::Tls`] all the same.
pub async fn connect(
    address: &Address,
    security: &Security,
    limits: &Limits,
    hello: &Hello,
) -> Result<(Connection, u16), TransportError> {
    let timely = timeout(limits.connect, socket(address)).await;
    let socket = timely.map_err(|_| TransportError::ConnectTimeout {
        address: address.clone(),
        after: limits.connect,
    })??;
    let timely = timeout(limits.handshake, begin(socket, address, security, hello)).await;
    timely.map_err(|_| TransportError::HandshakeTimeout {
        peer: address.to_string(),
        after: limits.handshake,
    })?
}

async fn socket(address: &Address) -> Result<Socket, TransportError> {
    let failed = |source| TransportError::Connect { address: address.clone(), source };
    match address {
        Address::Unix(path) => {
            Socket::unix(UnixStream::connect(path).await.map_err(failed)?).map_err(failed)
        }
        Address::Tcp { host, port } => {
            let unknown = |source| TransportError::Resolve { address: address.clone(), source };
            let found: Vec<_> =
                lookup_host((host.as_str(), *port)).await.map_err(unknown)?.collect();
            // Each in turn.
            Socket::tcp(TcpStream::connect(&found[..]).await.map_err(failed)?).map_err(failed)
        }
    }
}

async fn begin(
    socket: Socket,
    address: &Address,
    security: &Security,
    hello: &Hello,
) -> Result<(Connection, u16), TransportError> {
    let peer = address.to_string();
    let Security::Tls(tls) = security else {
        let mut connection = Connection::Plain(socket);
        return match greet(&mut connection, hello).await {
            Ok(version) => Ok((connection, version)),
            Err(source) => Err(TransportError::Greeting { peer, source }),
        };
    };
    let name = match (&tls.peer_name, address) {
        (Some(name), _) => name.clone(),
        (None, Address::Tcp { host, .. }) => {
            tls::server_name(host).map_err(|_| TransportError::NoName(address.clone()))?
        }
        (None, Address::Unix(_)) => return Err(TransportError::NoName(address.clone())),
    };
    let expected = name.to_str().into_owned();
    let failed = |error| TlsFailure::of(error, &expected);
    let connector = TlsConnector::from(tls.client.clone());
    let stream = match connector.connect(name, socket).await {
        Ok(stream) => stream,
        Err(error) => return Err(TransportError::Tls { peer, failure: failed(error) }),
    };
    let mut connection = Connection::Tls(Box::new(TlsStream::from(stream)));
    match greet(&mut connection, hello).await {
        Ok(version) => Ok((connection, version)),
        Err(StreamError::Io(error)) if inside(&error).is_some() => {
            Err(TransportError::Tls { peer, failure: failed(error) })
        }
        Err(source) => Err(TransportError::Greeting { peer, source }),
    }
}
