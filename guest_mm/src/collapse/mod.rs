//! Small leaves become a huge one: in place where they already fill a block in order (*promotion*), into
//! another block where they do not (*copy collapse*).
//!
//! A promotion moves nothing, so it goes on under pins and the guest's accesses. The steps of a copy are C1
//! to C8 of `pin-vs-collapse` ([`crate::pin`]), which begin like this:
//!
//! ```text
//! collapse-vs-collapse    collapse                        fault, protect, unmap, another collapse
//!                         C1 lock the page directory,     L1 find the page table, frozen or not
//!                            then the page table
//!                         C2 freeze the PDE;              L2 lock it: waits for C7 or the thaw
//!                            unlock the directory
//!                         C3..C6 with the page table's    L3 attached? else L1 again
//!                            lock alone
//!                         C7 lock the directory, put
//!                            the leaf in, in the
//!                            window too, unlock both
//!
//! Invariant   from C2 to C7 nobody but the collapse changes the PDE or any PTE below it. The directory, which
//!             spans a GiB, is not locked for the flush and the copy; it is for C7, whose call of the window
//!             is as any other leaf's of its level (C7 is longest where 512 mappings of a page each go).
//! Tolerated   C7 takes a parent's lock under its child's. Nobody waits the other way round: whoever holds
//!             the directory and meets a frozen entry lets go of it first.
//! Origin      ours; khugepaged holds the lock of the whole address space instead.
//! ```

#[cfg(not(loom))]
mod background;
mod copy;
#[cfg(all(test, loom))]
mod model;
mod report;
mod retract;

use crate::addr::{FrameNo, Gfn, GfnRange};
use crate::entry::{Entry, Leaf};
use crate::geometry::Level;
use crate::mirror::MirrorError;
use crate::prot::Prot;
use crate::protocol::{Protocol, Step};
use crate::space::{AddressSpace, RamRegion, count};
use crate::table::cursor::{Cursor, Ended};

#[cfg(not(loom))]
pub(crate) use background::Collapser;
#[cfg(not(loom))]
pub use background::{CollapserConfig, CollapserStats};
pub use report::{CollapsePolicy, CollapseReport, Collapsed, Copying, Skip, Skipped};

/// Why a collapse could not go on. Blocks before the one that failed are done; that one has all of its
/// pages, by 4 KiB or by 2 MiB.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CollapseError {
    /// The window could not be changed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Collapses every block that `range` touches, as far as `policy` allows.
pub(crate) fn collapse<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
    policy: CollapsePolicy,
) -> Result<CollapseReport, CollapseError> {
    let mut report = CollapseReport::default();
    for part in range.chunks(Level::PD.entry_frames()) {
        let block = GfnRange::entry(part.start(), Level::PD);
        report.add(block, collapse_block(space, block, policy)?);
    }
    Ok(report)
}

/// Collapses one block.
pub(crate) fn collapse_block<P: Protocol>(
    space: &AddressSpace<P>,
    block: GfnRange,
    policy: CollapsePolicy,
) -> Result<Collapsed, CollapseError> {
    let collapsed = try_block(space, block, policy)?;
    if matches!(collapsed, Collapsed::Promoted { .. } | Collapsed::Copied { .. }) {
        space.mirror.settle(block);
    }
    Ok(collapsed)
}

fn try_block<P: Protocol>(
    space: &AddressSpace<P>,
    block: GfnRange,
    policy: CollapsePolicy,
) -> Result<Collapsed, CollapseError> {
    let skipped = |why| Ok(Collapsed::Skipped(why));
    let start = block.start();
    let Some(region) = space.region(start).filter(|region| region.range.covers(block)) else {
        return skipped(Skip::NotWhole);
    };
    if let Some(done) = retract::retract(space, region, block)? {
        return Ok(done);
    }
    // C1
    P::at(Step::C1);
    let directory = space.table.cursor_on(start, Level::PD);
    let mut table = match directory.entry(start) {
        Entry::Leaf(_) => return Ok(Collapsed::AlreadyHuge),
        Entry::Absent => return skipped(Skip::Untouched),
        Entry::Marker(marker) => return skipped(Skip::marked(start, marker)),
        Entry::Frozen(_) => return skipped(Skip::Busy),
        Entry::Table(_) => match directory.below(start) {
            Some(table) if directory.level() == Level::PD => table,
            _ => return skipped(Skip::Untouched),
        },
    };
    let plan = match Plan::of(space, region, &table, policy) {
        Ok(plan) => plan,
        Err(why) => return skipped(why),
    };
    match plan.in_order.filter(|_| fill_holes_in_place(space, &mut table, &plan)) {
        Some(first) => promote(space, directory, table, first, &plan),
        None if policy.copying == Copying::Never => skipped(Skip::Scattered),
        None => copy::copy(space, region, directory, table, &plan),
    }
}

/// What a page table holds, if it can be collapsed at all.
struct Plan {
    /// The rights of every page.
    prot: Prot,
    /// Where each page lies, or that it is absent.
    pages: Vec<Option<FrameNo>>,
    /// Pages that are absent.
    holes: Vec<Gfn>,
    /// The first frame of the block in which every page lies in its place, if they do.
    in_order: Option<FrameNo>,
}

impl Plan {
    fn of<P: Protocol>(
        space: &AddressSpace<P>,
        region: &RamRegion,
        table: &Cursor<'_, P>,
        policy: CollapsePolicy,
    ) -> Result<Plan, Skip> {
        let block = table.range();
        let mut pages = Vec::with_capacity(block.frames() as usize);
        let mut holes = Vec::new();
        let mut first: Option<Leaf> = None;
        let mut in_order = None;
        for (i, gfn) in block.iter().enumerate() {
            let leaf = match table.entry(gfn) {
                Entry::Leaf(leaf) => leaf,
                Entry::Marker(marker) => return Err(Skip::marked(gfn, marker)),
                _ => {
                    pages.push(None);
                    holes.push(gfn);
                    continue;
                }
            };
            pages.push(Some(leaf.frame));
            let home = leaf.frame.block().first();
            if first.is_none() {
                first = Some(leaf);
                in_order = Some(home);
            }
            if first.is_some_and(|first| first.prot != leaf.prot) {
                return Err(Skip::MixedRights { gfn });
            }
            if !space.pool.frames().is_exclusive(leaf.frame) {
                return Err(Skip::Shared { gfn });
            }
            let in_place = in_order == Some(home) && leaf.frame.offset_in_block() == i as u64;
            in_order = in_order.filter(|_| in_place);
        }
        let Some(first) = first else { return Err(Skip::Untouched) };
        // A page that is absent reads as zeroes, unless there is an image behind it, and gets the rights of RAM when it is
        // touched, whatever those around it have lost.
        let fillable = region.over.is_none() && first.prot == Prot::RAM;
        let max_holes = if fillable { policy.max_holes } else { 0 };
        if holes.len() > max_holes as usize {
            return Err(Skip::Holes { absent: holes.len() as u32 });
        }
        Ok(Plan { prot: first.prot, pages, holes, in_order })
    }
}

/// Maps zeroed pages to the holes of a block whose pages lie in order, each in its place; false, and
/// nothing has changed, when one of these places is somebody else's.
fn fill_holes_in_place<P: Protocol>(
    space: &AddressSpace<P>,
    table: &mut Cursor<'_, P>,
    plan: &Plan,
) -> bool {
    let block = plan.in_order.map(FrameNo::block);
    let reservation = table.reservation().filter(|own| Some(own.block()) == block);
    let mut claimed = Vec::with_capacity(plan.holes.len());
    for &gfn in &plan.holes {
        let offset = gfn.offset_in(Level::PT.table_frames());
        let Some(frame) = reservation.and_then(|own| space.pool.claim_zeroed(own, offset)) else {
            claimed.iter().for_each(|&(_, frame)| space.pool.release(frame, 1));
            return false;
        };
        claimed.push((gfn, frame));
    }
    for (gfn, frame) in claimed {
        // Installed with the whole block.
        let _with_the_block = table.map(gfn, Leaf::own(frame, plan.prot));
    }
    true
}

fn promote<'t, P: Protocol>(
    space: &AddressSpace<P>,
    mut directory: Cursor<'t, P>,
    table: Cursor<'t, P>,
    first: FrameNo,
    plan: &Plan,
) -> Result<Collapsed, CollapseError> {
    let start = table.range().start();
    let leaf = Leaf::own(first, plan.prot);
    let (published, ended) = directory.promote(start, table, leaf);
    let shown = published.promote(&*space.mirror);
    drop(directory);
    end(space, ended);
    count(&space.counters.prefilled, plan.holes.len() as u64);
    shown?;
    Ok(Collapsed::Promoted { holes: plan.holes.len() as u64 })
}

/// Ends the reservations of page tables that are gone.
fn end<P: Protocol>(space: &AddressSpace<P>, ended: Ended) {
    ended.into_iter().for_each(|reservation| space.pool.unreserve(reservation));
}
