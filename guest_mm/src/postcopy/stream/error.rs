//! What can go wrong with a stream.

use std::io;
use std::time::Duration;

use crate::postcopy::wire::{Encoding, Reason, Refusal, Versions, WireError};

/// Why a stream failed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// What came is no message of the protocol, or what was to be written is none.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The peer has closed a stream that is not to end here.
    #[error("the peer has closed the stream")]
    Closed,
    /// The stream ended in the middle of a message.
    #[error("the stream ended in the middle of a message")]
    CutShort,
    /// Nothing came for so long.
    #[error("nothing came from the peer for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The peer took nothing for so long.
    #[error("the peer took nothing for {} ms", .0.as_millis())]
    Stalled(Duration),
    /// Too much is queued already.
    #[error("the peer takes nothing, and a thousand requests wait for it")]
    Full,
    /// A payload was read or written in part: what comes next is not the beginning of a frame.
    #[error("a payload was abandoned: nothing can follow it on this stream")]
    Abandoned,
    /// The payload that is to be read or written does not fit what is given for it.
    #[error("{given} bytes are given for a payload of {needed}, {encoding}")]
    Buffers {
        /// Bytes of the caller's memory.
        given: usize,
        /// Bytes that were announced.
        needed: usize,
        /// How they are packed.
        encoding: Encoding,
    },
    /// The sink does not want this stream.
    #[error("the sink refuses the stream: {1}")]
    Refused(Refusal, Reason),
    /// The sink chose a version that was not offered.
    #[error("the sink chose version {chosen} of the protocol, and was offered {offered}")]
    Version {
        /// What it chose.
        chosen: u16,
        /// What it was offered.
        offered: Versions,
    },
    /// Pages could not be packed.
    #[error("pages could not be packed: {0}")]
    Pack(io::Error),
}

impl StreamError {
    /// Whether it is the connection that failed and not the peer: a session can resume over another one.
    pub fn is_connection_lost(&self) -> bool {
        matches!(
            self,
            StreamError::Io(_)
                | StreamError::Closed
                | StreamError::CutShort
                | StreamError::Silent(_)
                | StreamError::Stalled(_)
        )
    }
}
