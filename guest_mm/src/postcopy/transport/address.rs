//! Where a sink listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a sink listens: `unix:/path` or `tcp:host:port`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port of a host.
    Tcp {
        /// Its name or its address; an IPv6 address has no brackets here.
        host: String,
        /// The port; 0 to listen on any that is free.
        port: u16,
    },
}

/// Why a text is no address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "\"{0}\" is no address of a channel: unix:/PATH or tcp:HOST:PORT, an IPv6 host in brackets"
)]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        parse(text).ok_or_else(|| AddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Address> {
    if let Some(path) = text.strip_prefix("unix:") {
        return (!path.is_empty()).then(|| Address::Unix(path.into()));
    }
    let (host, port) = text.strip_prefix("tcp:")?.rsplit_once(':')?;
    let bare = host.strip_prefix('[').map_or(Some(host), |rest| rest.strip_suffix(']'))?;
    // A colon is part of an IPv6 address, which has brackets.
    if bare.is_empty() || bare.contains(':') != host.starts_with('[') {
        return None;
    }
    // `u16` would take a sign.
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = if digits { port.parse().ok()? } else { return None };
    Some(Address::Tcp { host: bare.to_owned(), port })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_as_it_is_written() {
        for text in ["unix:/run/slat.sock", "unix:here", "tcp:sink.example:4000", "tcp:[::1]:0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let v6 = Address::Tcp { host: "fe80::1%eth0".to_owned(), port: 9 };
        assert_eq!("tcp:[fe80::1%eth0]:9".parse(), Ok(v6));
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_is_one() {
        for text in [
            "",
            "unix:",
            "tcp:",
            "tcp:host",
            "tcp::1",
            "tcp:host:",
            "tcp:host:65536",
            "tcp:host:+1",
            "tcp:::1:80",
            "tcp:[::1:80",
            "tcp:[]:80",
            "tcp:[host]:80",
            "http://host",
            "/run/x",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{text}\"")) && error.contains("tcp:HOST:PORT"));
        }
    }
}
