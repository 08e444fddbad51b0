//! What is kept of a console: its size, and how far a buffer was sent that is not done.

use serde::{Deserialize, Serialize};

use crate::virtio::model::Saved;

use super::wire::Size;

/// The form that is written and read.
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    columns: u16,
    rows: u16,
    sent: u64,
}

pub(super) fn save(Size { columns, rows }: Size, sent: u64) -> Saved {
    Saved::new(VERSION, &State { columns, rows, sent })
}

pub(super) fn restore(saved: &Saved) -> Result<(Size, u64), String> {
    let State { columns, rows, sent } = saved.read(VERSION)?;
    Ok((Size { columns, rows }, sent))
}
