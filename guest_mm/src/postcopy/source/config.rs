//! How a guest goes.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::postcopy::wire::{Encoding, Mode};

/// How a guest goes.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// When its pages go.
    pub mode: Mode,
    /// How pages in bulk are packed. Pages that are asked for go as they are.
    pub encoding: Encoding,
    /// Streams for pages in bulk: 1 to 8.
    pub bulk_streams: u8,
    /// Most bytes a second in bulk; unlimited without.
    pub rate: Option<NonZeroU64>,
    /// Most rounds of a pre-copy. A hybrid migration switches over then; a pure one fails, and the guest stays.
    pub rounds: u32,
    /// How long the guest may stand still for the last round of a pre-copy.
    pub downtime: Duration,
    /// How long the other side may be silent, or take nothing.
    pub patience: Duration,
}

/// Rounds of a pure pre-copy, if nobody says another number.
pub const PRE_COPY_ROUNDS: u32 = 30;

impl Default for SourceConfig {
    fn default() -> SourceConfig {
        SourceConfig {
            mode: Mode::Hybrid,
            encoding: Encoding::Raw,
            bulk_streams: 1,
            rate: None,
            rounds: 1,
            downtime: Duration::from_millis(300),
            patience: Duration::from_secs(10),
        }
    }
}
