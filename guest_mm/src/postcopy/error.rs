//! How a migration ends otherwise.

use super::machine::Failure;
use super::stream::StreamError;
use super::wire::{Reason, Role};

/// Why a guest did not move, or not yet.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A stream failed.
    #[error("the {stream} stream: {source}")]
    Stream {
        /// Which.
        stream: Role,
        /// What is wrong with it.
        source: StreamError,
    },
    /// The bulk streams ended before all that the source has sent had come.
    #[error("the connection broke: of {sent} pages that were sent in bulk {came} have come")]
    EndedEarly {
        /// Pages that came.
        came: u64,
        /// Pages that the source says it has sent.
        sent: u64,
    },
    /// No connection is to be had.
    #[error("{0}")]
    Connect(String),
    /// The sink does not want this machine.
    #[error("the sink refuses the machine: {0}")]
    Refused(Reason),
    /// The sink has given up.
    #[error("the sink has given up: {0}")]
    SinkFailed(Reason),
    /// The source has given up.
    #[error("the source has given up: {0}")]
    SourceCancelled(Reason),
    /// The machine did not do its part.
    #[error("{what}: {source}")]
    Machine {
        /// What it was asked for.
        what: &'static str,
        /// Why it did not.
        source: Failure,
    },
    /// The guest writes faster than its pages go.
    #[error(
        "the guest writes faster than its memory can be sent: after {rounds} rounds {left} MiB are left, at {rate} MiB/s; \
         allow a longer downtime or a higher rate, or choose the hybrid mode"
    )]
    NoConvergence {
        /// Rounds that were made.
        rounds: u32,
        /// What is left, in MiB.
        left: u64,
        /// How fast it goes, in MiB a second.
        rate: u64,
    },
    /// The guest is itself not all there yet.
    #[error("{0} pages of the guest have not arrived here themselves: wait until they have")]
    Incomplete(u64),
    /// Guest memory cannot be read or filled.
    #[error("{0}")]
    Memory(String),
    /// The peer does what the protocol does not allow.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The other side has said nothing for too long.
    #[error("the other side has said nothing for {0} s")]
    Silent(u64),
    /// The operator does not want it any more.
    #[error("it was cancelled")]
    Cancelled,
    /// The guest has ended.
    #[error("the guest has ended")]
    Ended,
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

impl Trouble {
    pub(super) fn stream(stream: Role, source: StreamError) -> Trouble {
        Trouble::Stream { stream, source }
    }

    /// Whether this side is to blame, so that the peer cannot help.
    pub fn is_of_this_side(&self) -> bool {
        matches!(
            self,
            Trouble::Machine { .. }
                | Trouble::Memory(_)
                | Trouble::Cancelled
                | Trouble::Ended
                | Trouble::System { .. }
        )
    }

    /// Whether the connection is to blame, so that another one may help.
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Trouble::Stream { source, .. } => source.is_connection_lost(),
            Trouble::Connect(_) | Trouble::Silent(_) | Trouble::EndedEarly { .. } => true,
            _ => false,
        }
    }
}
