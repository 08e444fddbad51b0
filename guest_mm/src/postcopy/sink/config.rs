//! How a guest comes.

use std::time::Duration;

use crate::postcopy::transport::{Address, Limits, Security};

/// How a guest comes.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    /// Where to listen.
    pub address: Address,
    /// Whether the source is to prove who it is.
    pub security: Security,
    /// How long a stream may take to begin, and how many may be beginning.
    pub limits: Limits,
    /// How long the source may be silent.
    pub patience: Duration,
}
