//! Frames on their way to a guest.

use crate::addr::FrameNo;
use crate::pool::{OwnRun, Pool};
use crate::sync::Arc;

/// A frame that is nobody's yet, to be filled and then placed: what arrives in it is not copied again.
#[derive(Debug)]
pub struct Parcel(OwnRun);

/// The one frame of a run that has no other.
impl From<OwnRun> for Parcel {
    fn from(one: OwnRun) -> Parcel {
        debug_assert!(one.frames() == 1);
        Parcel(one)
    }
}

#[cfg(not(loom))]
impl Parcel {
    /// A frame of `pool`, all zeroes.
    ///
    /// # Errors
    /// None is left.
    pub(crate) fn new(pool: &Arc<Pool>) -> Result<Parcel, crate::pool::Exhausted> {
        OwnRun::zeroed_frame(pool).map(Parcel)
    }

    /// Copies `bytes` into it, from `offset` on.
    ///
    /// # Panics
    /// If they do not fit the page.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0.bytes()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

impl Parcel {
    /// The frame, in use still.
    pub(super) fn frame(&self) -> FrameNo {
        self.0.first()
    }

    /// What is in it, if it belongs to `pool`.
    pub(super) fn open(self, pool: &Arc<Pool>) -> Option<FrameNo> {
        self.0.give(pool).ok()
    }
}
