//! Copy collapse: pages from anywhere are gathered in a block of their own (C2 to C8).

use crate::addr::{FrameNo, Gfn, GfnRange};
use crate::entry::Leaf;
use crate::geometry::Level;
use crate::protocol::{Protocol, Step, Steps};
use crate::space::{AddressSpace, RamRegion, count};
use crate::sync::full_fence;
use crate::table::cursor::Cursor;

use super::{CollapseError, Collapsed, Plan, Skip, end};

/// Gathers the pages of `table`, and zeroes for its holes, in a block; `directory` is the table above, locked
/// (C1).
pub(super) fn copy<'t, P: Protocol>(
    space: &'t AddressSpace<P>,
    region: &RamRegion,
    mut directory: Cursor<'t, P>,
    mut table: Cursor<'t, P>,
    plan: &Plan,
) -> Result<Collapsed, CollapseError> {
    let range = table.range();
    let start = range.start();
    // A first look, so that the guest is not disturbed in vain.
    if let Some(gfn) = pinned_page(space, range, plan) {
        return Ok(Collapsed::Skipped(Skip::Pinned { gfn }));
    }
    let hint = region.preferred_frame(start, space.pool.nr_frames()).block();
    let Some(block) = space.pool.alloc_block(hint) else {
        return Ok(Collapsed::Skipped(Skip::NoBlock));
    };
    let target = block.first();
    // C2
    P::at(Step::C2);
    let zap = directory.freeze(start, &mut table);
    drop(directory);
    // C3
    P::at(Step::C3);
    let flushed = match zap.flush(&*space.mirror) {
        Ok(flushed) => flushed,
        Err(error) => {
            give_up(space, &table, target);
            return Err(error.into());
        }
    };
    // C4
    full_fence();
    // C5
    if P::takes(Steps::C5_LOOK_AFTER_FREEZE)
        && let Some(gfn) = look_for_pins(space, range, plan)
    {
        let _nothing = flushed.release(&space.pool);
        give_up(space, &table, target);
        return Ok(Collapsed::Skipped(Skip::Pinned { gfn }));
    }
    // C6
    P::at(Step::C6);
    for (i, page) in plan.pages.iter().enumerate() {
        let to = target.add(i as u64);
        match *page {
            Some(from) => space.pool.copy(from, to),
            None => space.pool.memory().zero(to, 1),
        }
    }
    // C7
    P::at(Step::C7);
    let mut directory = space.table.cursor_above_frozen(start, Level::PD);
    let leaf = Leaf::own(target, plan.prot);
    let (published, old, ended) = directory.replace(start, table, leaf, flushed);
    let shown = published.promote(&*space.mirror);
    drop(directory);
    // C8
    P::at(Step::C8);
    let pages = old.release(&space.pool);
    end(space, ended);
    count(&space.counters.prefilled, plan.holes.len() as u64);
    shown?;
    Ok(Collapsed::Copied { pages, holes: plan.holes.len() as u64 })
}

/// C5.
fn look_for_pins<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
    plan: &Plan,
) -> Option<Gfn> {
    P::at(Step::C5);
    pinned_page(space, range, plan)
}

/// The first page of `range` that a device has pinned.
fn pinned_page<P: Protocol>(space: &AddressSpace<P>, range: GfnRange, plan: &Plan) -> Option<Gfn> {
    let frames = space.pool.frames();
    let mut pages = range.iter().zip(&plan.pages);
    pages.find(|(_, page)| page.is_some_and(|frame| frames.is_pinned(frame))).map(|found| found.0)
}

/// Everything is as it was, but for what the window lost: the guest asks for that again.
fn give_up<'t, P: Protocol>(space: &'t AddressSpace<P>, table: &Cursor<'t, P>, target: FrameNo) {
    let start = table.range().start();
    space.table.cursor_above_frozen(start, Level::PD).thaw(start, table);
    space.pool.release(target, Level::PD.entry_frames());
}
