//! Claims of devices on guest memory.
//!
//! ```text
//! pin-vs-collapse         pinner (device)                 collapse (holds the page table's lock)
//!                         P1 walk: PDE, then PTE (guard)  C2 freeze the PDE: no walker finds the table
//!                         P2 pin the PTE's frame          C3 zap the window: no vCPU writes any more
//!                         P3 full barrier                 C4 full barrier
//!                         P4 PTE unchanged?               C5 a frame is pinned? then thaw the PDE
//!                         P5 PDE unchanged? else P7       C6 copy the frames into a block
//!                         P7 unpin (and again from P1)    C7 PDE := the block; retire the table
//!                                                            (R2); the block in the window
//!                                                         C8 free the frames
//!
//! Invariant   a frame that P5 left pinned is not copied: either C5 sees the pin of P2, or P5 sees what C2
//!             did. The PTE alone does not tell: C2 to C7 leave it as it is.
//! Tolerated   a pin of P2 on a frame that was copied already, until P7; nobody writes through it. A
//!             collapse that gives up (C5) on a pin that P7 takes back.
//! Origin      Linux 70cbc3cc78a99 (P5: without the IPI that once held collapses up, the fast walk must look
//!             at the PMD again) and 2ba99c5e08812 (R2: nor may the table be freed under it).
//! Variants    `PinWithoutPde` skips P5; `LookBeforeFreeze` does C5 before C2; `FreeWithoutGrace` skips R2
//!             (`table::reclaim`). The first two lose what the device writes; with the last, a pin lands on a
//!             frame that the range never had.
//! ```
//!
//! A frame that somebody else uses too cannot be pinned: at the next store the guest and its device would part. So behind
//! P5 comes P6, the look at the frame's mark (`pin-vs-unexclusive`, [`crate::share`]); without the mark the page is first
//! given a copy of its own.
//!
//! `pool::pins` has the same pinner against an unmap, and what becomes of a frame that is unmapped under a
//! pin. A leaf of 2 MiB is pinned as a whole, on one word; there P4 is the look at the PDE, and P5 is nothing.
//!
//! The fast path is P1 to P6 for every page, under one guard, without a lock, an allocation or a system
//! call. What is in its way is dealt with outside of the guard: a change is tried again, a frozen table is
//! waited for, anything else is a fault. A page that keeps changing is pinned under its table's lock.

mod batch;
#[cfg(all(test, loom))]
mod model;
mod patience;
mod pinned;
mod runs;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::addr::{BlockNo, FrameNo, Gfn, GfnRange, Gpa};
use crate::entry::Entry;
use crate::fault::{FaultError, fault, fetch, unshare};
use crate::geometry::Level;
use crate::pool::{Dirty, FrameWords};
use crate::prot::Access;
use crate::protocol::{Protocol, Step, Steps};
use crate::space::{AddressSpace, PinCount};
use crate::sync::full_fence_after_rmw;
use crate::table::reclaim::Guard;
use crate::table::walk::{Located, Tables};

pub use batch::{OwnedPinBatch, PinBatch};
pub use patience::{Cancel, Patience};
pub use pinned::Pinned;
pub(crate) use pinned::pin;
#[cfg(not(loom))]
pub(crate) use pinned::slice;
use runs::{Kind, PinRun, Runs};

/// Why memory could not be pinned. Nothing of it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PinError {
    /// The access cannot be made at all.
    #[error("a device cannot use guest memory: {0}")]
    Fault(#[from] FaultError),
    /// Somebody was still at work on the page, or it was still elsewhere, when the time was up.
    #[error(
        "guest-physical {gpa} could not be pinned in time: its block is being collapsed, or has not arrived"
    )]
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
    /// Others use the frame too.
    Shared,
}

/// Changes in a row that one page is granted before its table's lock is taken.
const TRIES: u32 = if cfg!(loom) { 1 } else { 4 };

/// What the fast path reads, its addresses at hand.
struct Reader<'g, P: Protocol> {
    space: &'g AddressSpace<P>,
    guard: &'g Guard,
    tables: Tables<'g>,
    words: FrameWords<'g>,
}

impl<'g, P: Protocol> Reader<'g, P> {
    #[inline(always)]
    fn new(space: &'g AddressSpace<P>, guard: &'g Guard) -> Reader<'g, P> {
        let (tables, words) = (space.table.tables(guard), space.pool.frames().words());
        Reader { space, guard, tables, words }
    }
}

/// The fast path, for one leaf: pins up to `want` pages of it from `gfn` on, or says no more than that
/// something is in the way. One page, or one huge leaf, is what devices ask for most.
#[inline(always)]
fn pin_leaf<P: Protocol>(
    reader: &Reader<'_, P>,
    gfn: Gfn,
    want: u64,
    access: Access,
) -> Option<PinRun> {
    // P1
    P::at(Step::P1);
    let found = reader.tables.locate::<P>(gfn);
    pin_located(reader, &found, gfn, want, access)
}

/// As [`pin_leaf`], for a leaf that was found already.
#[inline(always)]
fn pin_located<P: Protocol>(
    reader: &Reader<'_, P>,
    found: &Located<'_>,
    gfn: Gfn,
    want: u64,
    access: Access,
) -> Option<PinRun> {
    if found.level() > Level::PT {
        return pin_huge(reader.space, reader.guard, gfn, want, access).ok();
    }
    pin_small(reader.space, reader.words, found, access).ok()
}

/// P2 to P6 for a page.
#[inline(always)]
fn pin_small<P: Protocol>(
    space: &AddressSpace<P>,
    words: FrameWords<'_>,
    found: &Located<'_>,
    access: Access,
) -> Result<PinRun, Obstacle> {
    let Some(frame) = found.frame_for(access) else { return Err(Obstacle::Fault) };
    // P2
    P::at(Step::P2);
    let before = words.pin(frame);
    // P3
    if P::takes(Steps::P3_BARRIER_BEHIND_PIN) {
        full_fence_after_rmw();
    }
    // P4, P5
    P::at(Step::P4);
    let unchanged =
        found.is_unchanged::<P>() && (!P::takes(Steps::P5_RECHECK_PDE) || is_attached::<P>(found));
    // P6
    let exclusive = if P::takes(Steps::X5_ONE_EXCHANGE) || !P::takes(Steps::P6_RECHECK_MARK) {
        before.is_exclusive()
    } else {
        is_marked::<P>(words, frame)
    };
    if unchanged && exclusive {
        return Ok(PinRun::new(frame, 1, Kind::Frames, before.dirty()));
    }
    // P7
    P::at(Step::P7);
    space.pool.unpin(frame);
    Err(if unchanged { Obstacle::Shared } else { Obstacle::Changed })
}

/// P5.
#[inline(always)]
fn is_attached<P: Protocol>(found: &Located<'_>) -> bool {
    P::at(Step::P5);
    found.is_attached()
}

/// P6, where X5 is two steps.
#[inline(always)]
fn is_marked<P: Protocol>(words: FrameWords<'_>, frame: FrameNo) -> bool {
    P::at(Step::P6);
    words.is_exclusive(frame)
}

/// P1 to P4 and P6 for up to `want` pages of a huge leaf; or why there is none. It walks for itself: that is three
/// loads, and keeps the path of a page in registers.
fn pin_huge<P: Protocol>(
    space: &AddressSpace<P>,
    guard: &Guard,
    gfn: Gfn,
    want: u64,
    access: Access,
) -> Result<PinRun, Obstacle> {
    // P1
    P::at(Step::P1);
    let found = space.table.locate(guard, gfn);
    if found.level() == Level::PT {
        return Err(Obstacle::Changed);
    }
    let Some(leaf) = found.frame_for(access) else {
        let frozen = matches!(found.entry(), Entry::Frozen(_));
        return Err(if frozen { Obstacle::Frozen } else { Obstacle::Fault });
    };
    let span = found.level().entry_frames();
    let offset = gfn.offset_in(span);
    let (first, frames) = (leaf.add(offset), want.min(span - offset));
    // P2
    P::at(Step::P2);
    blocks(first, frames).for_each(|block| space.pool.frames().pin_block(block));
    // P3
    full_fence_after_rmw();
    // P4
    P::at(Step::P4);
    let unchanged = found.is_unchanged::<P>();
    // P6. A huge leaf is a guest's, whose frames all have the mark, or an image's, whose have none.
    if unchanged && found.is_of_guest() {
        return Ok(PinRun::new(first, frames, Kind::Blocks, Dirty::NotYet));
    }
    // P7
    P::at(Step::P7);
    blocks(first, frames).for_each(|block| space.pool.unpin_block(block));
    Err(if unchanged { Obstacle::Shared } else { Obstacle::Changed })
}

/// The blocks that `frames` from `first` on touch.
fn blocks(first: FrameNo, frames: u64) -> impl Iterator<Item = BlockNo> {
    let last = first.add(frames - 1).block();
    (first.block().index()..=last.index()).map(|block| BlockNo::new(block as u32))
}

/// Pins what `first`, the attempt at its first leaf, has left of `range`: its first run, and the others added
/// to `more`. Out of line: whatever it takes, it must not weigh on the fast path.
///
/// # Errors
/// [`PinError`]; nothing of it is pinned.
fn pin_rest<P: Protocol>(
    space: &AddressSpace<P>,
    guard: &mut Guard,
    range: GfnRange,
    access: Access,
    patience: &Patience,
    first: Option<PinRun>,
    more: &mut Vec<PinRun>,
) -> Result<PinRun, PinError> {
    let open = more.len();
    let mut runs = Runs { first: None, more, others: open };
    let (mut gfn, mut left, mut changes) = (range.start(), range.frames(), 0);
    let mut step = match first {
        Some(run) => Ok(runs.push(run)),
        None => pin_in_table(space, guard, gfn, left, access, &mut runs),
    };
    loop {
        let failed = match step {
            Ok(done) => {
                (gfn, left, changes) = (gfn.add(done), left - done, 0);
                if left == 0 {
                    return Ok(runs.first.expect("a range is not empty"));
                }
                None
            }
            Err(Obstacle::Changed) if changes == TRIES => {
                changes = 0;
                if let Some(run) = guard.outside(|| pin_locked(space, gfn, access)) {
                    step = Ok(runs.push(run));
                    continue;
                }
                None
            }
            Err(Obstacle::Shared) if space.shares_image(gfn) => {
                // It is never written and never replaced, so there is nothing to part from.
                if let Some(run) = guard.outside(|| pin_locked(space, gfn, access)) {
                    step = Ok(runs.push(run));
                    continue;
                }
                None
            }
            Err(obstacle) => {
                changes += u32::from(obstacle == Obstacle::Changed);
                guard.outside(|| overcome(space, (gfn, left), obstacle, access, patience)).err()
            }
        };
        if let Some(error) = failed {
            // No device has seen any of it, so nobody wrote.
            runs.first.into_iter().for_each(|run| run.unpin(&space.pool, Access::Read));
            runs.more.drain(open..).for_each(|run| run.unpin(&space.pool, Access::Read));
            return Err(error);
        }
        step = pin_in_table(space, guard, gfn, left, access, &mut runs);
    }
}

/// The fast path, for as many leaves from `gfn` on as one table has: pins up to `want` pages; how many.
fn pin_in_table<P: Protocol>(
    space: &AddressSpace<P>,
    guard: &Guard,
    gfn: Gfn,
    want: u64,
    access: Access,
    runs: &mut Runs<'_>,
) -> Result<u64, Obstacle> {
    // P1
    P::at(Step::P1);
    let mut found = space.table.locate(guard, gfn);
    if found.level() > Level::PT {
        return pin_huge(space, guard, gfn, want, access).map(|run| runs.push(run));
    }
    let words = space.pool.frames().words();
    let mut done = 0;
    loop {
        match pin_small(space, words, &found, access) {
            Ok(run) => done += runs.push(run),
            // What is in the way of the first is in the way; the others are asked again.
            Err(obstacle) if done == 0 => return Err(obstacle),
            Err(_) => return Ok(done),
        }
        match found.next() {
            Some(next) if done < want => found = next,
            _ => return Ok(done),
        }
    }
}

/// Deals with what stopped the fast path at `gfn`, from where on `left` pages are to be pinned. Without a guard: it may take a
/// while.
fn overcome<P: Protocol>(
    space: &AddressSpace<P>,
    (gfn, left): (Gfn, u64),
    obstacle: Obstacle,
    access: Access,
    patience: &Patience,
) -> Result<(), PinError> {
    let count = |counter: PinCount| space.pin_counts.add(counter as usize, 1);
    match obstacle {
        Obstacle::Changed => count(PinCount::Changed),
        Obstacle::Frozen if patience.is_endless() => {
            count(PinCount::Frozen);
            // Who collapses holds this lock.
            drop(space.table.cursor_on(gfn, Level::PT));
        }
        Obstacle::Frozen => {
            count(PinCount::Frozen);
            patience.nap(gfn.gpa())?;
        }
        Obstacle::Fault => {
            count(PinCount::Faults);
            // All that is missing is asked for at once, not one behind the other.
            let rest = (0..left).map(|at| gfn.add(at));
            patience.sleep(gfn.gpa(), |waker| fetch(space, rest, waker))?;
            fault(space, gfn.gpa(), access)?;
        }
        Obstacle::Shared => {
            count(PinCount::Shared);
            unshare(space, gfn.gpa())?;
        }
    }
    Ok(())
}

/// Pins the page under its table's lock, where nothing changes; none if it is not there, or others use it too. A page
/// that is an image's for good may be pinned for all that.
fn pin_locked<P: Protocol>(space: &AddressSpace<P>, gfn: Gfn, access: Access) -> Option<PinRun> {
    space.pin_counts.add(PinCount::Locked as usize, 1);
    let cursor = space.table.cursor_on(gfn, Level::PT);
    let Entry::Leaf(leaf) = cursor.entry(gfn) else { return None };
    if !leaf.prot.allows(access) {
        return None;
    }
    let frame = leaf.frame.add(gfn.offset_in(cursor.level().entry_frames()));
    if !space.pool.frames().is_exclusive(frame) && !space.shares_image(gfn) {
        return None;
    }
    if cursor.level() > Level::PT {
        space.pool.frames().pin_block(frame.block());
        return Some(PinRun::new(frame, 1, Kind::Blocks, Dirty::NotYet));
    }
    let before = space.pool.frames().words().pin(frame);
    Some(PinRun::new(frame, 1, Kind::Frames, before.dirty()))
}
