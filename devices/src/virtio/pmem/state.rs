//! What is kept of persistent memory: nothing but where it must still be.

use serde::{Deserialize, Serialize};

use crate::virtio::model::Saved;

use super::wire::Region;

/// The form that is written and read.
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    start: u64,
    size: u64,
}

pub(super) fn save(Region { start, size }: Region) -> Saved {
    Saved::new(VERSION, &State { start, size })
}

pub(super) fn restore(region: Region, saved: &Saved) -> Result<(), String> {
    let State { start, size } = saved.read(VERSION)?;
    if (start, size) != (region.start, region.size) {
        let Region { start: here, size: now } = region;
        return Err(format!(
            "the memory was {size:#x} bytes at {start:#x}, and is {now:#x} at {here:#x}"
        ));
    }
    Ok(())
}
