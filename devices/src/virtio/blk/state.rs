//! What is kept of a disk: what it must still be when it is opened again, and requests that wait for their memory.

use serde::{Deserialize, Serialize};

use crate::virtio::model::Saved;

use super::aside::{Aside, SavedRequest};
use super::wire::Shape;

/// The form that is written and read where no request waits, as ever.
const VERSION: u16 = 1;
/// The form with requests that wait: who does not know of them must not drop them.
const WITH_REQUESTS: u16 = 2;

#[derive(Serialize, Deserialize)]
struct State {
    sectors: u64,
    read_only: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aside: Vec<SavedRequest>,
}

pub(super) fn save(shape: &Shape, aside: &Aside) -> Saved {
    let aside = aside.save();
    let version = if aside.is_empty() { VERSION } else { WITH_REQUESTS };
    Saved::new(version, &State { sectors: shape.sectors, read_only: shape.read_only, aside })
}

pub(super) fn restore(shape: &Shape, saved: &Saved, waiting: &mut Aside) -> Result<(), String> {
    let version = if saved.version == VERSION { VERSION } else { WITH_REQUESTS };
    let State { sectors, read_only, aside } = saved.read(version)?;
    if sectors != shape.sectors {
        let here = shape.sectors;
        return Err(format!("the disk had {sectors} sectors, and the file has {here}"));
    }
    if read_only != shape.read_only {
        let was = if read_only { "read-only" } else { "writable" };
        return Err(format!("the disk was {was}, and is not now"));
    }
    waiting.restore(aside, shape.queues)
}
