//! What is kept of a balloon: how large it should be, how large it is, and the buffer of statistics that it holds.

use serde::{Deserialize, Serialize};

use crate::virtio::model::Saved;

use super::statistics::Statistics;

/// The form that is written and read.
const VERSION: u16 = 1;

/// That.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// Pages that the driver is asked for.
    pub(super) target: u32,
    /// Pages that it says it has given.
    pub(super) actual: u32,
    /// The chain that statistics came in, until the next are wanted.
    pub(super) held: Option<u16>,
    /// What it told last.
    pub(super) statistics: Statistics,
}

pub(super) fn save(state: &State) -> Saved {
    Saved::new(VERSION, state)
}

pub(super) fn restore(saved: &Saved) -> Result<State, String> {
    saved.read(VERSION)
}
