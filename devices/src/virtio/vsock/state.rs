//! What is kept of a socket device: its address. Connections have their other ends on the host, and do not travel.

use serde::{Deserialize, Serialize};

use crate::virtio::model::Saved;

/// The form that is written and read.
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    cid: u32,
}

pub(super) fn save(cid: u32) -> Saved {
    Saved::new(VERSION, &State { cid })
}

pub(super) fn restore(cid: u32, saved: &Saved) -> Result<(), String> {
    let State { cid: before } = saved.read(VERSION)?;
    if before != cid {
        return Err(format!("the guest's CID was {before}, and is {cid} now"));
    }
    Ok(())
}
