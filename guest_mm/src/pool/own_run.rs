//! Frames that nobody has yet but who holds this.
#![allow(unsafe_code, reason = "hands out the bytes of frames that are their holder's alone")]

use std::ops::Range;

use crate::addr::{BlockNo, FrameNo, PageSize};
use crate::sync::Arc;

#[cfg(not(loom))]
use super::Exhausted;
use super::{Pool, Reservation};

/// Frames of the pool in a row, in use, that no table leads to. Their bytes are whatever they were; those that were not given away
/// go back when this is dropped.
#[derive(Debug)]
pub(crate) struct OwnRun {
    pool: Arc<Pool>,
    first: FrameNo,
    frames: u64,
}

impl OwnRun {
    /// A whole block, `hint` if that is free; none if none is whole.
    pub(crate) fn block(pool: &Arc<Pool>, hint: BlockNo) -> Option<OwnRun> {
        let first = pool.alloc_block(hint)?.first();
        Some(OwnRun { pool: Arc::clone(pool), first, frames: PageSize::Size2M.frames() })
    }

    /// A frame in use that no table leads to, and that nobody else is going to give back.
    pub(crate) fn of(pool: &Arc<Pool>, frame: FrameNo) -> OwnRun {
        OwnRun { pool: Arc::clone(pool), first: frame, frames: 1 }
    }

    /// Any frame, its bytes zero.
    #[cfg(not(loom))]
    pub(crate) fn zeroed_frame(pool: &Arc<Pool>) -> Result<OwnRun, Exhausted> {
        Ok(OwnRun::of(pool, pool.alloc_zeroed()?))
    }

    /// The frames at `offsets` of `reservation`; none if one of them is in use.
    pub(crate) fn claimed(
        pool: &Arc<Pool>,
        reservation: Reservation,
        offsets: Range<u64>,
    ) -> Option<OwnRun> {
        let first = reservation.block().first().add(offsets.start);
        let mut run = OwnRun { pool: Arc::clone(pool), first, frames: 0 };
        for offset in offsets {
            pool.claim(reservation, offset)?;
            run.frames += 1;
        }
        Some(run)
    }

    /// Takes the frame behind them, too, which is as [`of`](OwnRun::of) has it.
    #[cfg(not(loom))]
    pub(crate) fn push(&mut self, frame: FrameNo) {
        debug_assert_eq!(frame, self.first.add(self.frames));
        self.frames += 1;
    }

    /// The first of them.
    pub(crate) fn first(&self) -> FrameNo {
        self.first
    }

    /// How many there are.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// Has the host back a whole block by a huge page now, where it can and does not do so by itself. Its bytes stay what they are.
    #[cfg(not(loom))]
    pub(crate) fn gather(&mut self) {
        if self.frames == PageSize::Size2M.frames() && !self.pool.has_huge_folios() {
            self.pool.memory().gather(self.first.block());
        }
    }

    /// Their bytes.
    #[cfg(not(loom))]
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let bytes = (self.frames * PageSize::Size4K.bytes()) as usize;
        let start = self.pool.memory().address(self.first, 0, bytes);
        // SAFETY:
        // 1. `address` has checked that the bytes lie in the direct map, which lives as long as the pool, and any byte is a
        //    `u8`;
        // 2. the frames were allocated to this value alone, no table and no other value leads to them, and the borrow of `self`
        //    keeps them from being given away or borrowed again meanwhile.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
    }

    /// Gives all of them to who is going to map them in a guest of `pool`: the first; back, if they are another pool's.
    pub(crate) fn give(mut self, pool: &Arc<Pool>) -> Result<FrameNo, OwnRun> {
        if !Arc::ptr_eq(&self.pool, pool) {
            return Err(self);
        }
        self.frames = 0;
        Ok(self.first)
    }

    /// Parts the first of them from the others.
    pub(crate) fn split_first(&mut self) -> Option<OwnRun> {
        self.frames = self.frames.checked_sub(1)?;
        let one = OwnRun::of(&self.pool, self.first);
        self.first = self.first.add(1);
        Some(one)
    }
}

impl Drop for OwnRun {
    fn drop(&mut self) {
        if self.frames > 0 {
            self.pool.release(self.first, self.frames);
        }
    }
}
