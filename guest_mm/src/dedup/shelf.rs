//! The shared frames that the scanner knows, by what is in them: their bytes do not change any more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::addr::FrameNo;
use crate::pool::Pool;
use crate::sync::Arc;

use super::checksum::{ByChecksum, Checksum};

/// Leaves that may share one frame: far from what its counter of references holds.
const MOST_SHARERS: u32 = 1 << 20;

/// Each frame with one reference.
#[derive(Debug)]
pub(super) struct Shelf {
    pool: Arc<Pool>,
    frames: ByChecksum<FrameNo>,
    sums: HashMap<FrameNo, Checksum>,
}

/// How much the shelf saves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Saved {
    /// Frames that leaves map.
    pub(super) frames: u64,
    /// Leaves that map them, beyond the first of each.
    pub(super) pages: u64,
}

impl Shelf {
    pub(super) fn new(pool: Arc<Pool>) -> Shelf {
        Shelf { pool, frames: ByChecksum::default(), sums: HashMap::new() }
    }

    /// The frame of this checksum that another page may become.
    pub(super) fn find(&mut self, sum: Checksum) -> Option<FrameNo> {
        let frame = *self.frames.get(&sum)?;
        if self.pool.frame_state(frame).refs <= MOST_SHARERS {
            return Some(frame);
        }
        // It is full, and another one is begun.
        self.remove(sum, frame);
        None
    }

    /// Whether it is known.
    pub(super) fn has(&self, frame: FrameNo) -> bool {
        self.sums.contains_key(&frame)
    }

    /// Keeps `frame`, on which the caller had a reference for it.
    pub(super) fn keep(&mut self, sum: Checksum, frame: FrameNo) {
        match self.frames.entry(sum) {
            Entry::Vacant(place) if !self.sums.contains_key(&frame) => {
                place.insert(frame);
                self.sums.insert(frame, sum);
            }
            // It is kept already, or another frame of these bytes is.
            _ => self.pool.release(frame, 1),
        }
    }

    /// Lets go of what nobody else keeps.
    pub(super) fn prune(&mut self) {
        let unused = self.sums.iter().filter(|(frame, _)| self.pool.frame_state(**frame).refs == 1);
        let unused: Vec<_> = unused.map(|(&frame, &sum)| (sum, frame)).collect();
        unused.into_iter().for_each(|(sum, frame)| self.remove(sum, frame));
    }

    /// Lets go of all. Pages that are merged stay so.
    pub(super) fn clear(&mut self) {
        self.frames.clear();
        for (frame, _) in self.sums.drain() {
            self.pool.release(frame, 1);
        }
    }

    fn remove(&mut self, sum: Checksum, frame: FrameNo) {
        self.frames.remove(&sum);
        self.sums.remove(&frame);
        self.pool.release(frame, 1);
    }

    /// The frames that it keeps.
    pub(super) fn kept(&self) -> impl Iterator<Item = FrameNo> + '_ {
        self.sums.keys().copied()
    }

    pub(super) fn saved(&self) -> Saved {
        self.kept().fold(Saved::default(), |saved, frame| {
            let leaves = u64::from(self.pool.frame_state(frame).refs.saturating_sub(1));
            Saved {
                frames: saved.frames + u64::from(leaves > 0),
                pages: saved.pages + leaves.saturating_sub(1),
            }
        })
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.clear();
    }
}
