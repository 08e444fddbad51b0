//! Claims of devices on guest memory.
//!
//! ```text
//! pin-vs-collapse         pinner (device)                 collapse (holds the page table's lock)
//!                         P1 walk: PDE, then PTE (guard)  C2 freeze the PDE: no walker finds the table
//!                         P2 pin the PTE's frame          C3 zap the window: no vCPU writes any more
//!                         P3 full barrier                 C4 full barrier
//!                         P4 PTE unchanged?               C5 a frame is pinned? then thaw the PDE
//!                         P5 PDE unchanged? else P6       C6 copy the frames into a block
//!                         P6 unpin (and again from P1)    C7 PDE := the block, in the window too
//!                                                         C8 retire the table (R2), free the frames
//!
//! Invariant   a frame that P5 left pinned is not copied: either C5 sees the pin of P2, or P5 sees what C2
//!             did. The PTE alone does not tell: C2 to C7 leave it as it is.
//! Tolerated   a pin of P2 on a frame that was copied already, until P6; nobody writes through it. A
//!             collapse that gives up (C5) on a pin that P6 takes back.
//! Origin      Linux 70cbc3cc78a99 (P5: without the IPI that once held collapses up, the fast walk must look
//!             at the PMD again) and 2ba99c5e08812 (R2: nor may the table be freed under it).
//! Variants    `PinWithoutPde` skips P5; `LookBeforeFreeze` does C5 before C2; `FreeWithoutGrace` skips R2
//!             (`table::reclaim`). The first two lose what the device writes; with the last, a pin lands on a
//!             frame that the range never had.
//! ```
//!
//! `pool::pins` has the same pinner against an unmap, and what becomes of a frame that is unmapped under a
//! pin. A leaf of 2 MiB is pinned as a whole, on one word; there P4 is the look at the PDE, and P5 is nothing.
//!
//! The fast path is P1 to P5 for every page, under one guard, without a lock, an allocation or a system
//! call. What is in its way is dealt with outside of the guard: a change is tried again, a frozen table is
//! waited for, anything else is a fault. A page that keeps changing is pinned under its table's lock.

mod batch;
#[cfg(all(test, loom))]
mod model;
mod patience;
mod pinned;
mod runs;

use crate::addr::{FrameNo, Gfn, GfnRange, Gpa, PageSize};
use crate::entry::Entry;
use crate::fault::{FaultError, fault};
use crate::geometry::Level;
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, PinCount};
use crate::sync::full_fence_after_rmw;
use crate::table::reclaim::Guard;

pub use batch::PinBatch;
pub use patience::{Cancel, Patience};
pub use pinned::Pinned;
pub(crate) use pinned::pin;
use runs::{Kind, Runs};

/// Why memory could not be pinned. Nothing of it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PinError {
    /// The access cannot be made at all.
    #[error("a device cannot use guest memory: {0}")]
    Fault(#[from] FaultError),
    /// Somebody was still at work on the page when the time was up.
    #[error("guest-physical {gpa} could not be pinned in time: its block is being collapsed")]
    TimedOut {
        /// The first page that was not pinned.
        gpa: Gpa,
    },
    /// The wait was cancelled.
    #[error("the wait for guest-physical {gpa} was cancelled")]
    Cancelled {
        /// The first page that was not pinned.
        gpa: Gpa,
    },
}

/// What stopped the fast path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Obstacle {
    /// The entry or the way to it changed between P1 and P5.
    Changed,
    /// A collapse has the table.
    Frozen,
    /// Nothing is there, or it does not allow the access.
    Fault,
}

/// Changes in a row that one page is granted before its table's lock is taken.
const TRIES: u32 = if cfg!(loom) { 1 } else { 4 };

/// Frames of one block.
const BLOCK: u64 = PageSize::Size2M.frames();

/// Pins every page of `range`, and adds it to `runs`, of which those from `open` on belong to the same
/// range. On an error, the runs that were added are still pinned.
#[inline]
fn pin_range<P: Protocol>(
    space: &AddressSpace<P>,
    guard: &mut Guard,
    range: GfnRange,
    access: Access,
    patience: &Patience,
    runs: &mut Runs,
) -> Result<(), PinError> {
    let open = runs.len();
    let (mut gfn, mut left, mut changes) = (range.start(), range.frames(), 0);
    while left > 0 {
        let (mut done, obstacle) = pin_in_table(space, guard, gfn, left, access, runs, open);
        if let Some(obstacle) = obstacle {
            let at = gfn.add(done);
            changes = if done > 0 { 0 } else { changes } + u32::from(obstacle == Obstacle::Changed);
            if changes > TRIES {
                if let Some((frame, kind)) = guard.outside(|| pin_locked(space, at, access)) {
                    runs.push(frame, 1, kind, open);
                    done += 1;
                }
                changes = 0;
            } else {
                overcome(space, guard, at, obstacle, access, patience)?;
            }
        }
        gfn = gfn.add(done);
        left -= done;
    }
    space.pin_counts.add(PinCount::Ranges as usize, 1);
    Ok(())
}

/// The fast path: pins up to `want` pages from `gfn` on, as far as their table goes; how many, and what
/// was in the way of the next.
#[inline]
fn pin_in_table<P: Protocol>(
    space: &AddressSpace<P>,
    guard: &Guard,
    gfn: Gfn,
    want: u64,
    access: Access,
    runs: &mut Runs,
    open: usize,
) -> (u64, Option<Obstacle>) {
    let frames = space.pool.frames();
    // P1
    let mut found = space.table.locate(guard, gfn);
    let mut done = 0;
    loop {
        let Some(first) = found.frame_for(access) else {
            let frozen = matches!(found.entry(), Entry::Frozen(_));
            return (done, Some(if frozen { Obstacle::Frozen } else { Obstacle::Fault }));
        };
        if found.level() > Level::PT {
            let span = found.level().entry_frames();
            let offset = gfn.offset_in(span);
            let (first, len) = (first.add(offset), want.min(span - offset));
            // P2
            blocks(first, len).for_each(|block| frames.pin_block(block.block()));
            // P3
            full_fence_after_rmw();
            // P4
            if !found.is_unchanged() {
                // P6
                blocks(first, len).for_each(|block| space.pool.unpin_block(block.block()));
                return (0, Some(Obstacle::Changed));
            }
            runs.push(first, len, Kind::Blocks, open);
            return (len, None);
        }
        // P2
        frames.pin(first);
        // P3
        full_fence_after_rmw();
        // P4, P5
        if !found.is_unchanged() || (P::P5_RECHECK_PDE && !found.is_attached()) {
            // P6
            space.pool.unpin(first);
            return (done, Some(Obstacle::Changed));
        }
        runs.push(first, 1, Kind::Frames, open);
        done += 1;
        match found.next() {
            Some(next) if done < want => found = next,
            _ => return (done, None),
        }
    }
}

/// The first frame of what `frames` from `first` on have of each block.
fn blocks(first: FrameNo, frames: u64) -> impl Iterator<Item = FrameNo> {
    let start = first.index() as u64;
    let aligned = start - first.offset_in_block();
    (aligned..start + frames).step_by(BLOCK as usize).map(|frame| FrameNo::new(frame as u32))
}

/// Deals with what stopped the fast path at `gfn`, outside of the guard.
#[cold]
fn overcome<P: Protocol>(
    space: &AddressSpace<P>,
    guard: &mut Guard,
    gfn: Gfn,
    obstacle: Obstacle,
    access: Access,
    patience: &Patience,
) -> Result<(), PinError> {
    let count = |counter: PinCount| space.pin_counts.add(counter as usize, 1);
    guard.outside(|| match obstacle {
        Obstacle::Changed => {
            count(PinCount::Changed);
            Ok(())
        }
        Obstacle::Frozen => {
            count(PinCount::Frozen);
            if !patience.is_endless() {
                return patience.nap(gfn.gpa());
            }
            // Who collapses holds this lock.
            drop(space.table.cursor_on(gfn, Level::PT));
            Ok(())
        }
        Obstacle::Fault => {
            count(PinCount::Faults);
            fault(space, gfn.gpa(), access)?;
            Ok(())
        }
    })
}

/// Pins the page under its table's lock, where nothing changes; none if it is not there.
#[cold]
fn pin_locked<P: Protocol>(
    space: &AddressSpace<P>,
    gfn: Gfn,
    access: Access,
) -> Option<(FrameNo, Kind)> {
    space.pin_counts.add(PinCount::Locked as usize, 1);
    let cursor = space.table.cursor_on(gfn, Level::PT);
    let Entry::Leaf(leaf) = cursor.entry(gfn) else { return None };
    if !leaf.prot.allows(access) {
        return None;
    }
    let frame = leaf.frame.add(gfn.offset_in(cursor.level().entry_frames()));
    if cursor.level() > Level::PT {
        space.pool.frames().pin_block(frame.block());
        return Some((frame, Kind::Blocks));
    }
    space.pool.frames().pin(frame);
    Some((frame, Kind::Frames))
}
