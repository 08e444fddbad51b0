//! Memory that begins as zeroes: a page, what surrounds it, a block, a GiB.

use crate::addr::{FrameNo, Gfn, GfnRange, Gpa, PageSize};
use crate::entry::{Entry, Leaf, Marker, Source};
use crate::geometry::Level;
use crate::mirror::{Mirror, MirrorError, Run};
use crate::pool::{Exhausted, OwnRun, Pool};
use crate::prot::{Access, Prot};
use crate::protocol::{Protocol, Step, Steps};
use crate::space::{AddressSpace, RamRegion, count};
use crate::table::cursor::Cursor;
use crate::table::zap::{Late, Published};

use super::{FaultError, Filled, image, own, walk};

/// Serves the violation of `access` at `gpa`, in a region of zeroes where no leaf refuses it.
pub(super) fn serve<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    gpa: Gpa,
    access: Access,
) -> Result<Filled, FaultError> {
    let gfn = gpa.gfn();
    let sizes = PageSize::ALL.iter().rev().filter(|&&size| size <= space.policy.pages);
    for &size in sizes.filter(|&&size| size > PageSize::Size4K) {
        if let Some(filled) = fill_huge(space, region, gfn, size, Cause::Touched)? {
            return Ok(filled);
        }
    }
    let entry = walk(space, gfn).entry;
    if space.pool.granule() > PageSize::Size4K && is_vacant(space, entry, Cause::Touched) {
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
        Entry::Absent | Entry::Marker(Marker::Returned) if smallest > Level::PT => {
            // It was there, and has been taken away since.
            drop(cursor);
            return serve(space, region, gpa, access);
        }
        Entry::Marker(Marker::Returned) if cursor.level() > Level::PT => {
            // The guest takes this page of the block; it has not said so of the others.
            cursor.split(gfn, |_| None)?;
            drop(cursor);
            return serve(space, region, gpa, access);
        }
        Entry::Absent | Entry::Marker(Marker::Returned) => {}
        Entry::Marker(marker) => return Err(FaultError::Marked { gpa, access, marker }),
        Entry::Leaf(leaf) if !leaf.prot.allows(access) => {
            return own::own(space, region, cursor, gpa, leaf);
        }
        _ => {
            if let Some(there) = cursor.republish(gfn) {
                there.install(&*space.mirror)?;
            }
            return Ok(Filled::Present);
        }
    }
    let page = GfnRange::entry(gfn, Level::PT);
    let filled =
        fill(space, region, cursor, page, Cause::Touched).map_err(|e| e.at(gpa, access))?;
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
            let rest = fill(space, region, cursor, block, Cause::Around);
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
    // Over an image, what comes next is the image's: a block made early would never be used.
    let Some(region) = space.region(here.start()).filter(|region| region.over.is_none()) else {
        return;
    };
    let blocks = PageSize::Size2M.frames();
    let before = here.start().as_u64().checked_sub(blocks).map(Gfn::new);
    let next = GfnRange::entry(here.end(), Level::PD);
    if !region.range.covers(next) {
        return;
    }
    let unused = [Entry::Absent, Entry::Marker(Marker::Returned)];
    let upwards = before.is_some_and(|gfn| !unused.contains(&walk(space, gfn).entry));
    if upwards && walk(space, next.start()).entry == Entry::Absent {
        let preferred = region.preferred_frame(next.start(), space.pool.nr_frames());
        space.pool.prepare(preferred.block());
    }
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
        let region = space.region(part.start()).ok_or(FaultError::NotRam { gpa, access })?;
        if let Some(over) = &region.over {
            pages += image::populate(space, region, over, part)?;
            continue;
        }
        let huge = space.policy.pages > PageSize::Size4K;
        let block = PageSize::Size2M;
        if huge && fill_huge(space, region, part.start(), block, Cause::Asked)?.is_some() {
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
        let part = part.intersection(region.range).expect("its start is in both");
        if cursor.level() == Level::PT {
            pages +=
                fill(space, region, cursor, part, Cause::Asked).map_err(|e| e.at(gpa, access))?;
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
    cause: Cause,
) -> Result<Option<Filled>, FaultError> {
    let Some(level) = size.level() else { return Ok(None) };
    let range = GfnRange::entry(gfn, level);
    let _right = space.fill_locks.lock(gfn, size);
    let walked = walk(space, gfn);
    let untouched = is_vacant(space, walked.entry, cause) && walked.level >= level;
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
    if cursor.level() != level || !is_vacant(space, cursor.entry(gfn), cause) {
        drop(cursor);
        space.pool.release(frame, size.frames());
        return Ok(None);
    }
    // F4
    P::at(Step::F4);
    let published = cursor.map(range.start(), Leaf::own(frame, Prot::RAM));
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

/// Whether a whole leaf may fill `entry`. Of a block that was given back the guest takes one page at a time, where the pool
/// has such pages.
fn is_vacant<P: Protocol>(space: &AddressSpace<P>, entry: Entry, cause: Cause) -> bool {
    let whole = cause == Cause::Touched && space.pool.granule() > PageSize::Size4K;
    entry == Entry::Absent || whole && entry == Entry::Marker(Marker::Returned)
}

/// A [`FaultError`] that does not yet know the access.
pub(super) enum FillError {
    Exhausted(Exhausted),
    Mirror(MirrorError),
}

impl FillError {
    pub(super) fn at(self, gpa: Gpa, access: Access) -> FaultError {
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
        let vacant = |entry| match entry {
            Entry::Absent => true,
            // Nobody asks for what the guest has given back, but the guest.
            Entry::Marker(Marker::Returned) => cause == Cause::Touched,
            _ => false,
        };
        let wanted = gfn < range.end() && result.is_ok() && vacant(cursor.entry(gfn));
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
            let published = cursor.map_run(done, Prot::RAM, Source::Guest);
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
    if !P::takes(Steps::F5_INSTALL_UNDER_LOCK) {
        return Ok(Some(published.after_unlock()));
    }
    P::at(Step::F5);
    match cause {
        Cause::Touched => published.install(mirror)?,
        Cause::Asked | Cause::Around => published.offer(mirror)?,
    }
    Ok(None)
}

/// A frame for the page `gfn`, which arrives: its bytes are whatever they were.
pub(super) fn frame_to_fill<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: &mut Cursor<'_, P>,
    gfn: Gfn,
) -> Result<FrameNo, FillError> {
    reserve(space, region, cursor).map_err(FillError::Mirror)?;
    let offset = gfn.offset_in(Level::PT.table_frames());
    if let Some(frame) = cursor.reservation().and_then(|own| space.pool.claim(own, offset)) {
        return Ok(frame);
    }
    count(&space.counters.scattered, 1);
    space.pool.alloc().map_err(FillError::Exhausted)
}

/// Frames for the pages of `range`, which arrive, all of one page table and none of them there: where they should lie, or none.
pub(crate) fn run_to_fill<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: &mut Cursor<'_, P>,
    range: GfnRange,
) -> Result<Option<OwnRun>, MirrorError> {
    reserve(space, region, cursor)?;
    let first = range.start().offset_in(Level::PT.table_frames());
    let offsets = first..first + range.frames();
    Ok(cursor.reservation().and_then(|own| OwnRun::claimed(&space.pool, own, offsets)))
}

/// Has the page table reserve a block, and the window show it there, if nothing lies in it yet.
fn reserve<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: &mut Cursor<'_, P>,
) -> Result<(), MirrorError> {
    if cursor.reservation().is_some() || cursor.has_leaf() {
        return Ok(());
    }
    let block = cursor.range();
    let hint = region.preferred_frame(block.start(), space.pool.nr_frames()).block();
    let Some(reservation) = space.pool.reserve(hint) else { return Ok(()) };
    cursor.set_reservation(reservation);
    let run =
        Run { gfn: block.start(), frame: reservation.block().first(), frames: block.frames() };
    space.mirror.remap(run)
}

/// A zeroed frame for the vacant page `gfn`, or none where `cause` does not justify one.
fn frame_for<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: &mut Cursor<'_, P>,
    gfn: Gfn,
    cause: Cause,
) -> Result<Option<FrameNo>, FillError> {
    let pool: &Pool = &space.pool;
    reserve(space, region, cursor).map_err(FillError::Mirror)?;
    let offset = gfn.offset_in(Level::PT.table_frames());
    let in_place = cursor.reservation().and_then(|r| pool.claim_zeroed(r, offset));
    if in_place.is_some() || cause == Cause::Around {
        return Ok(in_place);
    }
    count(&space.counters.scattered, 1);
    pool.alloc_zeroed().map(Some).map_err(FillError::Exhausted)
}
