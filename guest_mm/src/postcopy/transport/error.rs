//! Why a stream does not begin.

use std::io;
use std::time::Duration;

use rustls::CertificateError;

use super::Address;
use crate::postcopy::stream::StreamError;
use crate::postcopy::wire::Versions;

/// Why a stream does not begin. What a listener says of a peer does not end the listener.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The host has no address.
    #[error("the host of {address} is not found: {source}")]
    Resolve {
        /// Where to.
        address: Address,
        /// The system's word.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("{address} cannot be connected to: {source}")]
    Connect {
        /// Where to.
        address: Address,
        /// The system's word.
        source: io::Error,
    },
    /// It cannot be listened on.
    #[error("{address} cannot be listened on: {source}")]
    Bind {
        /// Where.
        address: Address,
        /// The system's word.
        source: io::Error,
    },
    /// There is a file already where the socket would be.
    #[error("{0} is there already: remove it if nobody listens on it")]
    Exists(Address),
    /// The system has no connection for the listener, though one was asked for.
    #[error("a connection could not be accepted: {0}")]
    Accept(io::Error),
    /// A socket's options cannot be set.
    #[error("the connection with {peer} cannot be set up: {source}")]
    Options {
        /// Whose.
        peer: String,
        /// The system's word.
        source: io::Error,
    },
    /// The connection did not come about in time.
    #[error("{address} did not answer in {} ms", .after.as_millis())]
    ConnectTimeout {
        /// Where to.
        address: Address,
        /// How long it was given.
        after: Duration,
    },
    /// The peer did not do its part of TLS and of the greeting in time.
    #[error("{peer} did not greet in {} ms", .after.as_millis())]
    HandshakeTimeout {
        /// Who.
        peer: String,
        /// How long it was given.
        after: Duration,
    },
    /// The two sides do not trust each other.
    #[error("no TLS with {peer}: {failure}")]
    Tls {
        /// Who.
        peer: String,
        /// Why.
        failure: TlsFailure,
    },
    /// TLS needs a name to look for in the sink's certificate, and this address has none.
    #[error("{0} has no name that a certificate could have: say which one to expect")]
    NoName(Address),
    /// There is no version that both speak.
    #[error("{peer} speaks versions {theirs} of the protocol, and this side {}", Versions::SPOKEN)]
    Versions {
        /// Who.
        peer: String,
        /// What the peer speaks.
        theirs: Versions,
    },
    /// The greeting failed.
    #[error("no greeting with {peer}: {source}")]
    Greeting {
        /// Who.
        peer: String,
        /// Why.
        source: StreamError,
    },
}

/// Why there is no TLS with a peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    /// Another authority has signed the peer's certificate.
    #[error("its certificate is not signed by the authority that is trusted here")]
    UnknownAuthority,
    /// The peer's certificate is too old.
    #[error("its certificate has expired")]
    Expired,
    /// The peer's certificate is not valid yet.
    #[error("its certificate is not valid yet: compare the clocks")]
    NotYetValid,
    /// The peer's certificate is another host's.
    #[error("its certificate is not for the name {0}")]
    WrongName(String),
    /// The peer has shown no certificate.
    #[error("it presents no certificate")]
    NoCertificate,
    /// The peer does not take this side's certificate, or has none to take.
    #[error("it refuses the certificate of this side ({0:?})")]
    RefusedByPeer(rustls::AlertDescription),
    /// The peer speaks something else.
    #[error("it speaks no TLS, or none that is spoken here: {0}")]
    OtherProtocol(rustls::Error),
    /// Anything else.
    #[error("{0}")]
    Other(rustls::Error),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(io::Error),
}

impl TlsFailure {
    /// What `error` of a TLS stream means; `expected` is the name that was looked for.
    pub(super) fn of(error: io::Error, expected: &str) -> TlsFailure {
        let Some(tls) = inside(&error) else { return TlsFailure::Io(error) };
        match tls {
            rustls::Error::InvalidCertificate(certificate) => match certificate {
                // A certificate of the same name by another authority has the wrong signature.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    TlsFailure::UnknownAuthority
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    TlsFailure::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    TlsFailure::NotYetValid
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    TlsFailure::WrongName(expected.to_owned())
                }
                _ => TlsFailure::Other(tls.clone()),
            },
            rustls::Error::NoCertificatesPresented => TlsFailure::NoCertificate,
            rustls::Error::AlertReceived(alert) if about_certificates(*alert) => {
                TlsFailure::RefusedByPeer(*alert)
            }
            rustls::Error::InvalidMessage(_)
            | rustls::Error::PeerIncompatible(_)
            | rustls::Error::NoApplicationProtocol
            | rustls::Error::AlertReceived(_) => TlsFailure::OtherProtocol(tls.clone()),
            other => TlsFailure::Other(other.clone()),
        }
    }
}

/// The error of rustls that `error` carries.
pub(super) fn inside(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether a peer that sends `alert` does not like a certificate.
fn about_certificates(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::CertificateRequired
    )
}
