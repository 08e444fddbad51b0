//! What is kept of a disk: nothing but what it must still be when it is opened again.

use serde::{Deserialize, Serialize};

use crate::virtio::model::Saved;

use super::wire::Shape;

/// The form that is written and read.
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    sectors: u64,
    read_only: bool,
}

pub(super) fn save(shape: &Shape) -> Saved {
    Saved::new(VERSION, &State { sectors: shape.sectors, read_only: shape.read_only })
}

pub(super) fn restore(shape: &Shape, saved: &Saved) -> Result<(), String> {
    let State { sectors, read_only } = saved.read(VERSION)?;
    if sectors != shape.sectors {
        let here = shape.sectors;
        return Err(format!("the disk had {sectors} sectors, and the file has {here}"));
    }
    if read_only != shape.read_only {
        let was = if read_only { "read-only" } else { "writable" };
        return Err(format!("the disk was {was}, and is not now"));
    }
    Ok(())
}
