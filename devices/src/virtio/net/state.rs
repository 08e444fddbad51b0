//! What is kept of a network device: what its driver set by commands, and the size of frames that it counts on.

use serde::{Deserialize, Serialize};

use crate::virtio::model::Saved;

use super::wire::{Mac, Shape};

/// The form that is written and read.
const VERSION: u16 = 1;

/// The state beside the queues. What the driver accepted is kept with the registers, and comes back by a start.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) mac: Mac,
    /// Pairs of queues in use.
    pub(super) pairs: u16,
    pub(super) mtu: Option<u16>,
}

pub(super) fn save(state: &State) -> Saved {
    Saved::new(VERSION, state)
}

/// The state in `saved`, if a device of `shape` can go on from it.
pub(super) fn restore(shape: &Shape, saved: &Saved) -> Result<State, String> {
    let state: State = saved.read(VERSION)?;
    if !(1..=shape.pairs).contains(&state.pairs) {
        let (then, now) = (state.pairs, shape.pairs);
        return Err(format!("its driver used {then} pairs of queues, and there are {now}"));
    }
    if let (Some(then), Some(now)) = (state.mtu, shape.mtu)
        && then > now
    {
        return Err(format!("its interface had an MTU of {then}, and has {now}"));
    }
    Ok(state)
}
