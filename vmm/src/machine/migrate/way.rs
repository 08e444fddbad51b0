//! What was asked for, as the channel wants it.

use std::num::NonZeroU64;
use std::time::Duration;

use guest_mm::postcopy::source::{Dialer, PRE_COPY_ROUNDS, SourceConfig};
use guest_mm::postcopy::transport::{Address, Limits, Security, Tls, TlsFiles};
use guest_mm::postcopy::wire::{Encoding, MOST_BULK_STREAMS, Mode};

use crate::control::{Credentials, Packing, SendMode, SendRequest};

/// How to reach the sink of `request`, and how to go there.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub(in crate::machine) fn way(request: &SendRequest) -> Result<(Dialer, SourceConfig), String> {
    let address: Address = request.to.parse().map_err(|error| format!("{error}"))?;
    let security = security(request.credentials.as_ref())?;
    if !(1..=MOST_BULK_STREAMS).contains(&request.streams) {
        let streams = request.streams;
        return Err(format!("{streams} streams are too many or too few: 1 to {MOST_BULK_STREAMS}"));
    }
    let mode = match request.mode {
        SendMode::PreCopy => Mode::PreCopy,
        SendMode::PostCopy => Mode::PostCopy,
        SendMode::Hybrid => Mode::Hybrid,
    };
    let few = SourceConfig::default();
    let rounds = if mode == Mode::PreCopy { PRE_COPY_ROUNDS } else { few.rounds };
    let config = SourceConfig {
        mode,
        encoding: match request.packing {
            Packing::None => Encoding::Raw,
            Packing::Lz4 => Encoding::Lz4,
            Packing::Zstd => Encoding::Zstd,
        },
        bulk_streams: request.streams,
        rate: request.rate.and_then(NonZeroU64::new),
        rounds: request.rounds.unwrap_or(rounds),
        downtime: Duration::from_millis(request.downtime_ms),
        ..few
    };
    Ok((Dialer { address, security, limits: Limits::default() }, config))
}

/// Whether the two sides prove who they are.
///
/// # Errors
/// A file is not what it should be.
pub fn security(credentials: Option<&Credentials>) -> Result<Security, String> {
    let Some(credentials) = credentials else { return Ok(Security::Plain) };
    let Credentials { authority, certificate, key, peer_name } = credentials.clone();
    let tls = Tls::from_files(&TlsFiles { authority, certificate, key, peer_name });
    tls.map(Security::Tls).map_err(|error| error.to_string())
}
