//! Small leaves that only map an image's block become the image's own huge leaf.
//!
//! ```text
//! place-vs-retract        place (a page arrives, or a store      retract
//!                         is given its copy)
//!                         A1 lock the page table                 T1 lock the page directory, then the table
//!                         A2 entry absent or missing?            T2 every entry absent, or the image's page in
//!                            else it is there already               its place? else leave all as it is
//!                         A3 publish the leaf                    T3 the PDE becomes the image's block
//!                         A4 install it in the window            T4 take the entries out
//!                                                                T5 retire the page table
//!
//! Invariant   what A3 publishes is in the tree afterwards: from T2 on nobody else has the page table's lock, and who
//!             gets it then finds the table detached (`lock-vs-detach`).
//! Tolerated   a walker finds the small leaf or the huge one: they say the same, so there is nothing to flush.
//! Origin      Linux 1043173eb5eb and its repair: the page table's lock was dropped between the emptying and the
//!             detaching, and UFFDIO_COPY could add a page to the table that was taken for empty.
//! Variants    `RetractUnlocked` empties the table with its lock alone, and detaches it later without a look: the page
//!             that was placed meanwhile is lost. `RetractUnflushed` empties it too early as well and does look again,
//!             but flushes only what the last pass took out: it gives up, and the window still shows the rest.
//! ```

use crate::addr::{Gfn, GfnRange};
use crate::entry::{Entry, Leaf, Source};
use crate::geometry::Level;
use crate::protocol::{Protocol, Step, Steps};
use crate::space::{AddressSpace, RamRegion};
use crate::table::cursor::Cursor;

use super::{CollapseError, Collapsed, Skip, end};

/// Retracts the page table of `block`, all of `region`; none if that is not what the block is fit for.
pub(super) fn retract<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    block: GfnRange,
) -> Result<Option<Collapsed>, CollapseError> {
    let start = block.start();
    let Some(over) = &region.over else { return Ok(None) };
    let Some(whole) = over.image.whole_block(over.page(region, start)) else { return Ok(None) };
    if !P::takes(Steps::T1_DIRECTORY_BEFORE_EMPTYING) || !P::takes(Steps::T3_LEAF_BEFORE_EMPTYING) {
        empty_early(space, block)?;
    }
    // T1
    P::at(Step::T1);
    let mut directory = space.table.cursor_on(start, Level::PD);
    let Some(table) = directory.below(start).filter(|_| directory.level() == Level::PD) else {
        return Ok(None);
    };
    // T2
    P::at(Step::T2);
    let mut mapped = 0;
    let in_place = |(i, gfn): (usize, Gfn)| {
        let entry = table.entry(gfn);
        let image = Entry::Leaf(Leaf::image(whole.first().add(i as u64), over.rights()));
        mapped += u64::from(entry == image);
        entry == Entry::Absent || entry == image
    };
    let fit = block.iter().enumerate().all(in_place);
    if P::takes(Steps::T1_DIRECTORY_BEFORE_EMPTYING) && !fit {
        return Ok(None);
    }
    if mapped == 0
        && P::takes(Steps::T1_DIRECTORY_BEFORE_EMPTYING)
        && P::takes(Steps::T3_LEAF_BEFORE_EMPTYING)
    {
        return Ok(Some(Collapsed::Skipped(Skip::Untouched)));
    }
    // T3, T4, T5
    P::at(Step::T3);
    let (published, ended) =
        directory.promote(start, table, Leaf::image(whole.first(), over.rights()));
    let shown = published.promote(&*space.mirror);
    drop(directory);
    end(space, ended);
    shown?;
    Ok(Some(Collapsed::Promoted { holes: 0 }))
}

/// What the variants do first: the image's pages are taken out (T4) with the page table's lock alone. One flushes here,
/// the other means to do so at the end.
fn empty_early<P: Protocol>(space: &AddressSpace<P>, block: GfnRange) -> Result<(), CollapseError> {
    let mut table: Cursor<'_, P> = space.table.cursor_on(block.start(), Level::PT);
    let of_image = |cursor: &Cursor<'_, P>, gfn| {
        matches!(cursor.entry(gfn), Entry::Absent)
            || matches!(cursor.entry(gfn), Entry::Leaf(leaf) if leaf.source == Source::Image)
    };
    if table.level() != Level::PT || !block.iter().all(|gfn| of_image(&table, gfn)) {
        return Ok(());
    }
    P::at(Step::T4);
    let zap = table.unmap(block);
    if P::takes(Steps::T3_LEAF_BEFORE_EMPTYING) {
        let _the_images = zap.flush(&*space.mirror)?;
    } else {
        zap.forget();
    }
    Ok(())
}
