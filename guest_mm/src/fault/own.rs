//! A page that others use too becomes the guest's own: it is copied, and the copy takes its place.
//!
//! Others are an image, and pages that were found to be the same. What they use is never written, so the copy can be
//! made before the entry changes. The entry is out of the table and of the window between the old page and the new
//! one: a device that finds the new one must not write to it while a vCPU still reads the old. The window may show the
//! new page before the table has it: it holds the same bytes, and until it is published nobody else can find it.

#[cfg(not(loom))]
use crate::addr::GfnRange;
use crate::addr::{FrameNo, Gfn, Gpa};
use crate::entry::{Entry, Leaf, Source};
use crate::geometry::Level;
use crate::pool::Exhausted;
use crate::prot::Access;
use crate::protocol::{Protocol, Step};
use crate::space::{AddressSpace, RamRegion, count};
use crate::table::cursor::Cursor;

use super::{FaultError, Filled};

/// Serves a store to `leaf`, which does not allow it and lies in the table of `cursor`.
pub(super) fn own<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: Cursor<'_, P>,
    gpa: Gpa,
    leaf: Leaf,
) -> Result<Filled, FaultError> {
    if !leaf.prot.copies_on_write() {
        return Err(FaultError::ReadOnly { gpa });
    }
    take_copy(space, region, cursor, gpa, leaf, Access::Write)?;
    Ok(Filled::Copied)
}

/// Makes the page at `gpa`, if one is mapped, one that a device can pin and the monitor may write to.
pub(crate) fn unshare<P: Protocol>(space: &AddressSpace<P>, gpa: Gpa) -> Result<(), FaultError> {
    let (gfn, access) = (gpa.gfn(), Access::Read);
    let region = space.region(gfn).ok_or(FaultError::NotRam { gpa, access })?;
    if space.shares_image(gfn) {
        return Err(FaultError::ReadOnly { gpa });
    }
    loop {
        let mut cursor = space.table.cursor_on(gfn, Level::PT);
        let Entry::Leaf(leaf) = cursor.entry(gfn) else { return Ok(()) };
        if space.pool.frames().is_exclusive(leaf.frame) {
            return Ok(());
        }
        if cursor.level() > Level::PT {
            cursor.split(gfn, |_| None)?;
            continue;
        }
        return take_copy(space, region, cursor, gpa, leaf, access);
    }
}

/// Undoes every merge in `range`. Pages of images stay.
#[cfg(not(loom))]
pub(crate) fn unmerge<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
) -> Result<(), FaultError> {
    let merged = |gfn: &Gfn| {
        let entry = super::walk(space, *gfn).entry;
        matches!(entry, Entry::Leaf(leaf) if leaf.source == Source::Guest)
    };
    range.iter().filter(merged).try_for_each(|gfn| unshare(space, gfn.gpa()))
}

/// Puts a copy in the place of the page that `leaf` maps.
fn take_copy<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    mut cursor: Cursor<'_, P>,
    gpa: Gpa,
    leaf: Leaf,
    access: Access,
) -> Result<(), FaultError> {
    let gfn = gpa.gfn();
    let frame = frame_for_copy(space, region, &mut cursor, gfn)
        .map_err(|cause| FaultError::Exhausted { gpa, access, cause })?;
    P::at(Step::K4);
    space.pool.copy(leaf.frame, frame);
    let own = Leaf::own(frame, leaf.prot.exclusive());
    if let Err(error) = cursor.take_out(gfn).flush_for(&*space.mirror, own) {
        let _shown_at_the_next_touch = cursor.put_back(gfn, leaf, leaf);
        space.pool.release(frame, 1);
        return Err(error.into());
    }
    if let (Source::Image, Some(over)) = (leaf.source, &region.over) {
        over.image.note_store(over.page(region, gfn));
    }
    let shown = cursor.put_back(gfn, leaf, own).install(&*space.mirror);
    drop(cursor);
    if leaf.source == Source::Guest {
        space.pool.release(leaf.frame, 1);
    }
    Ok(shown?)
}

/// A frame for the copy of a page at `gfn`, in its place in the block that the page table reserves if it can be: then
/// neighbours lie in order, and the window shows them by one mapping.
pub(super) fn frame_for_copy<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: &mut Cursor<'_, P>,
    gfn: Gfn,
) -> Result<FrameNo, Exhausted> {
    let pool = &space.pool;
    if region.over.is_some() && cursor.reservation().is_none() {
        let hint = region.preferred_frame(cursor.range().start(), pool.nr_frames()).block();
        pool.reserve(hint).into_iter().for_each(|own| cursor.set_reservation(own));
    }
    let offset = gfn.offset_in(Level::PT.table_frames());
    match cursor.reservation().and_then(|own| pool.claim(own, offset)) {
        Some(frame) => Ok(frame),
        None => {
            count(&space.counters.scattered, 1);
            pool.alloc()
        }
    }
}
