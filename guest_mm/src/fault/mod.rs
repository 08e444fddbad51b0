//! A violation becomes a page.
//!
//! ```text
//! continue-vs-zap         fault                           unmap (balloon, teardown)
//!                         F1 lock the table page          Z1 lock the table page
//!                         F2 entry absent? else done      Z2 clear the entry
//!                         F3 frame, zeroed                Z3 zap the window (waits for vCPUs)
//!                         F4 publish the leaf             Z4 unlock
//!                         F5 install it in the window     Z5 free the frame
//!                         F6 unlock
//!
//! Invariant   the window holds no translation that the table does not: F4 and F5 are one step for
//!             whoever takes the lock, and so are Z2 and Z3.
//! Tolerated   between F4 and F5 the window holds less than the table; a vCPU faults once more.
//! Origin      ours; KVM closes the same gap with a sequence number (`mmu_invalidate_seq`, Linux
//!             e930bffe95e1), because it cannot hold its lock over the look-up. We can: F5 is a
//!             microsecond.
//! Variant     `InstallAfterUnlock` does F5 after F6: the unmap comes between, the frame is freed and
//!             given to another, and the guest still reads it.
//! ```
//!
//! [`Published`] borrows the cursor, so code that installs after the unlock does not compile unless it says
//! `after_unlock`.

#[cfg(all(test, loom))]
mod model;

use crate::addr::{FrameNo, Gfn, GfnRange, Gpa, PageSize};
use crate::entry::{Entry, Leaf, Marker};
use crate::geometry::Level;
use crate::mirror::{Mirror, MirrorError, Run};
use crate::pool::{Exhausted, Pool};
use crate::prot::{Access, Prot};
use crate::protocol::{Protocol, Step};
use crate::space::{AddressSpace, RamRegion, count};
use crate::table::OutOfTables;
use crate::table::cursor::Cursor;
use crate::table::walk::Walked;
use crate::table::zap::{Late, Published};

/// The rights of RAM.
const RAM: Prot = Prot::Rwx;

/// What a violation led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The page, or the block or GiB around it, is mapped now.
    Fresh(PageSize),
    /// It was mapped already; it is in the window now.
    Present,
}

/// Why a violation cannot be served. The guest cannot go on past the access.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FaultError {
    /// The address is no RAM.
    #[error("{access} of guest-physical {gpa}, which is not RAM")]
    NotRam {
        /// Where.
        gpa: Gpa,
        /// What was tried.
        access: Access,
    },
    /// The page is marked.
    #[error("{access} of the {} page at guest-physical {gpa}", name(*marker))]
    Marked {
        /// Where.
        gpa: Gpa,
        /// What was tried.
        access: Access,
        /// How the page is marked.
        marker: Marker,
    },
    /// A write where only reads are allowed.
    #[error("write to the read-only page at guest-physical {gpa}")]
    ReadOnly {
        /// Where.
        gpa: Gpa,
    },
    /// There is no frame for the page.
    #[error("{access} of guest-physical {gpa}: {cause}")]
    Exhausted {
        /// Where.
        gpa: Gpa,
        /// What was tried.
        access: Access,
        /// How large the pool is.
        cause: Exhausted,
    },
    /// A thread of the service failed, and has said how.
    #[error("a thread that serves the guest's faults failed")]
    Failed,
    /// There is no table page for the entry.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// The window could not be changed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

fn name(marker: Marker) -> &'static str {
    match marker {
        Marker::Missing => "missing",
        Marker::Guard => "guard",
        Marker::Poison => "poisoned",
    }
}

/// Serves the violation of `access` at `gpa`: when this returns, the page is mapped and the vCPU that
/// waited for it runs.
pub(crate) fn fault<P: Protocol>(
    space: &AddressSpace<P>,
    gpa: Gpa,
    access: Access,
) -> Result<Filled, FaultError> {
    let result = serve(space, gpa, access);
    let counters = &space.counters;
    match &result {
        Ok(Filled::Fresh(size)) => count(&counters.filled[size.level_number() as usize - 1], 1),
        Ok(Filled::Present) => count(&counters.present, 1),
        Err(_) => count(&counters.refused, 1),
    }
    result
}

fn serve<P: Protocol>(
    space: &AddressSpace<P>,
    gpa: Gpa,
    access: Access,
) -> Result<Filled, FaultError> {
    let gfn = gpa.gfn();
    let region = *space.region(gfn).ok_or(FaultError::NotRam { gpa, access })?;
    let sizes = PageSize::ALL.iter().rev().filter(|&&size| size <= space.policy.pages);
    for &size in sizes.filter(|&&size| size > PageSize::Size4K) {
        if let Some(filled) = fill_huge(space, &region, gfn, size)? {
            return Ok(filled);
        }
    }
    if space.pool.granule() > PageSize::Size4K && walk(space, gfn).entry == Entry::Absent {
        // No whole page was left, and this pool has no others.
        let cause = Exhausted { frames: space.pool.nr_frames() };
        return Err(FaultError::Exhausted { gpa, access, cause });
    }
    // F1
    P::at(Step::F1);
    let smallest = space.pool.granule().level().unwrap_or(Level::PT);
    let mut cursor = space.table.cursor_at(gfn, smallest)?;
    // F2
    match cursor.entry(gfn) {
        Entry::Absent if smallest > Level::PT => {
            // It was there, and has been taken away since.
            drop(cursor);
            return serve(space, gpa, access);
        }
        Entry::Absent => {}
        Entry::Marker(marker) => return Err(FaultError::Marked { gpa, access, marker }),
        Entry::Leaf(leaf) if !leaf.prot.allows(access) => return Err(FaultError::ReadOnly { gpa }),
        _ => {
            if let Some(there) = cursor.republish(gfn) {
                there.install(&*space.mirror)?;
            }
            return Ok(Filled::Present);
        }
    }
    let page = GfnRange::entry(gfn, Level::PT);
    let filled =
        fill(space, &region, cursor, page, Cause::Touched).map_err(|e| e.at(gpa, access))?;
    debug_assert!(filled == 1);
    if space.policy.pages > PageSize::Size4K {
        // The block could not be mapped in one piece. What surrounds the page is a convenience: the guest
        // has what it asked for, may never ask for the rest, and faults again if it does. So it is filled
        // from what the block reserves, and nobody else's memory is taken for it.
        let block = GfnRange::entry(gfn, Level::PD).intersection(region.range);
        let cursor = space.table.cursor_on(gfn, Level::PT);
        if let Some(block) = block
            && cursor.level() == Level::PT
        {
            let rest = fill(space, &region, cursor, block, Cause::Around);
            count(&space.counters.prefilled, rest.unwrap_or(0));
        }
    }
    Ok(Filled::Fresh(PageSize::Size4K))
}

/// Has the host back the block behind the one around `gpa`, which was just filled, if the guest walks
/// upwards: zeroing a block takes most of a block fault, and the vCPU is at work meanwhile. Nothing is
/// mapped and no frame is taken; if the guest goes elsewhere, a block of the host's memory was made early.
#[cfg(not(loom))]
pub(crate) fn prepare_next<P: Protocol>(space: &AddressSpace<P>, gpa: Gpa) {
    let here = GfnRange::entry(gpa.gfn(), Level::PD);
    let Some(region) = space.region(here.start()) else { return };
    let blocks = PageSize::Size2M.frames();
    let before = here.start().as_u64().checked_sub(blocks).map(Gfn::new);
    let next = GfnRange::entry(here.end(), Level::PD);
    if !region.range.covers(next) {
        return;
    }
    let upwards = before.is_some_and(|gfn| walk(space, gfn).entry != Entry::Absent);
    if upwards && walk(space, next.start()).entry == Entry::Absent {
        let preferred = region.preferred_frame(next.start(), space.pool.nr_frames());
        space.pool.prepare(preferred.block());
    }
}

/// The entry for `gfn`, for decisions that are made again under the lock.
fn walk<P: Protocol>(space: &AddressSpace<P>, gfn: Gfn) -> Walked {
    space.table.walk(&space.table.enter(), gfn)
}

/// Maps every absent page of `range`, which is RAM, before anyone touches it, in whole blocks where the
/// policy is to fill blocks; how many.
pub(crate) fn populate<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
) -> Result<u64, FaultError> {
    let mut pages = 0;
    for part in range.chunks(Level::PT.table_frames()) {
        let gpa = part.start().gpa();
        let access = Access::Write;
        let region = *space.region(part.start()).ok_or(FaultError::NotRam { gpa, access })?;
        let huge = space.policy.pages > PageSize::Size4K;
        if huge && fill_huge(space, &region, part.start(), PageSize::Size2M)?.is_some() {
            pages += PageSize::Size2M.frames();
            continue;
        }
        if space.pool.granule() > PageSize::Size4K {
            // A page table would be in the way of the page that is to come.
            if walk(space, part.start()).entry == Entry::Absent {
                let cause = Exhausted { frames: space.pool.nr_frames() };
                return Err(FaultError::Exhausted { gpa, access, cause });
            }
            continue;
        }
        let cursor = space.table.cursor_at(part.start(), Level::PT)?;
        if cursor.level() == Level::PT {
            pages +=
                fill(space, &region, cursor, part, Cause::Asked).map_err(|e| e.at(gpa, access))?;
        }
    }
    count(&space.counters.prefilled, pages);
    Ok(pages)
}

/// Maps the whole leaf of `size` around `gfn`; none where something smaller has to do: part of it is
/// in use, or not RAM, or the pool has no whole run left.
fn fill_huge<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    gfn: Gfn,
    size: PageSize,
) -> Result<Option<Filled>, FaultError> {
    let Some(level) = size.level() else { return Ok(None) };
    let range = GfnRange::entry(gfn, level);
    let _right = space.fill_locks.lock(gfn, size);
    let walked = walk(space, gfn);
    let untouched = walked.entry == Entry::Absent && walked.level >= level;
    if !untouched || !region.range.covers(range) {
        return Ok(None);
    }
    // F3 comes first here: zeroing a block takes 100 us and more, and the lock spans all blocks of a
    // GiB. Only who maps single pages here meanwhile makes it in vain.
    let hint = region.preferred_frame(range.start(), space.pool.nr_frames());
    let Some(frame) = space.pool.alloc_run_zeroed(size, hint) else { return Ok(None) };
    // F1
    P::at(Step::F1);
    let mut cursor = match space.table.cursor_at(gfn, level) {
        Ok(cursor) => cursor,
        Err(error) => {
            space.pool.release(frame, size.frames());
            return Err(error.into());
        }
    };
    // F2
    if cursor.level() != level || cursor.entry(gfn) != Entry::Absent {
        drop(cursor);
        space.pool.release(frame, size.frames());
        return Ok(None);
    }
    // F4
    P::at(Step::F4);
    let published = cursor.map(range.start(), Leaf { frame, prot: RAM });
    // F5, F6
    match install::<P>(published, &*space.mirror, Cause::Touched)? {
        None => drop(cursor),
        Some(late) => {
            drop(cursor);
            P::at(Step::F5);
            late.install(&*space.mirror)?;
        }
    }
    Ok(Some(Filled::Fresh(size)))
}

/// A [`FaultError`] that does not yet know the access.
enum FillError {
    Exhausted(Exhausted),
    Mirror(MirrorError),
}

impl FillError {
    fn at(self, gpa: Gpa, access: Access) -> FaultError {
        match self {
            FillError::Exhausted(cause) => FaultError::Exhausted { gpa, access, cause },
            FillError::Mirror(error) => FaultError::Mirror(error),
        }
    }
}

/// Why pages are filled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// They were touched, and somebody waits.
    Touched,
    /// They are to be there when they are touched.
    Asked,
    /// They lie around a page that was touched. Only frames in their place in the block that the page
    /// table reserves are taken for them.
    Around,
}

/// Maps every absent page of `range` for which there is a frame; how many. The range lies in the page
/// table that `cursor` holds. Pages that lie in order go into the window in one call: that is 0.2 us a page
/// and not 0.8.
fn fill<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    mut cursor: Cursor<'_, P>,
    range: GfnRange,
    cause: Cause,
) -> Result<u64, FillError> {
    let mut late = Vec::new();
    let mut run: Option<Run> = None;
    let mut pages = 0;
    let mut result = Ok(());
    for gfn in range.iter().chain([range.end()]) {
        let wanted = gfn < range.end() && cursor.entry(gfn) == Entry::Absent && result.is_ok();
        // F3
        let frame = if wanted {
            P::at(Step::F3);
            let frame = frame_for(space, region, &mut cursor, gfn, cause);
            frame.unwrap_or_else(|error| {
                result = Err(error);
                None
            })
        } else {
            None
        };
        if let (Some(run), Some(frame)) = (run.as_mut(), frame)
            && run.gfn.add(run.frames) == gfn
            && run.frame.add(run.frames) == frame
        {
            run.frames += 1;
            continue;
        }
        if let Some(done) = run.take() {
            // F4, F5
            P::at(Step::F4);
            let published = cursor.map_run(done, RAM);
            pages += done.frames;
            match install::<P>(published, &*space.mirror, cause) {
                Ok(deferred) => late.extend(deferred),
                Err(error) => result = result.and(Err(FillError::Mirror(error))),
            }
        }
        run = frame.map(|frame| Run { gfn, frame, frames: 1 });
    }
    // F6
    P::at(Step::F6);
    drop(cursor);
    for late in late {
        P::at(Step::F5);
        late.install(&*space.mirror).map_err(FillError::Mirror)?;
    }
    result.map(|()| pages)
}

/// F5, or the promise to do it too late.
fn install<P: Protocol>(
    published: Published<'_>,
    mirror: &dyn Mirror,
    cause: Cause,
) -> Result<Option<Late>, MirrorError> {
    if !P::F5_INSTALL_UNDER_LOCK {
        return Ok(Some(published.after_unlock()));
    }
    P::at(Step::F5);
    match cause {
        Cause::Touched => published.install(mirror)?,
        Cause::Asked | Cause::Around => published.offer(mirror)?,
    }
    Ok(None)
}

/// A zeroed frame for the absent page `gfn`, or none where `cause` does not justify one.
fn frame_for<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: &mut Cursor<'_, P>,
    gfn: Gfn,
    cause: Cause,
) -> Result<Option<FrameNo>, FillError> {
    let pool: &Pool = &space.pool;
    if cursor.reservation().is_none() && !cursor.has_leaf() {
        let block = cursor.range();
        let hint = region.preferred_frame(block.start(), pool.nr_frames()).block();
        if let Some(reservation) = pool.reserve(hint) {
            cursor.set_reservation(reservation);
            let run = Run {
                gfn: block.start(),
                frame: reservation.block().first(),
                frames: block.frames(),
            };
            space.mirror.remap(run).map_err(FillError::Mirror)?;
        }
    }
    let offset = gfn.offset_in(Level::PT.table_frames());
    let in_place = cursor.reservation().and_then(|r| pool.claim_zeroed(r, offset));
    if in_place.is_some() || cause == Cause::Around {
        return Ok(in_place);
    }
    count(&space.counters.scattered, 1);
    pool.alloc_zeroed().map(Some).map_err(FillError::Exhausted)
}
