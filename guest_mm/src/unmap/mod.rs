//! Taking memory away from the guest: the pages go back to the pool, their next touch reads zeroes, or the image that they
//! lie over.

mod give_back;
#[cfg(all(test, loom))]
mod model;

use crate::addr::GfnRange;
use crate::entry::Entry;
use crate::geometry::Level;
use crate::mirror::MirrorError;
use crate::protocol::{Protocol, Step};
use crate::space::{AddressSpace, CutsPage};
use crate::table::OutOfTables;
use crate::table::cursor::Ended;

pub use give_back::{GiveBackError, GivenBack, TakeBackError};
pub(crate) use give_back::{give_back, take_back};

/// Why memory could not be taken away.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnmapError {
    /// It cuts through a page of the pool.
    #[error(transparent)]
    CutsPage(#[from] CutsPage),
    /// A huge leaf that is only partly in the range could not be split.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// The window may still hold it, so the frames stay in use.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Unmaps `range`, splitting huge leaves at its ends; how many frames went back to the pool.
pub(crate) fn unmap<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
) -> Result<u64, UnmapError> {
    space.check_granule(range)?;
    space.forget_merged(range);
    let mut frames = 0;
    let mut parts = range.chunks(Level::PD.entry_frames());
    let result = parts.try_for_each(|part| {
        frames += unmap_in_block(space, range, part)?;
        Ok(())
    });
    // V2: what was missing is not waited for.
    space.arrived(range);
    space.note_lost(range);
    result.map(|()| frames)
}

/// Unmaps `part`, what `range` has of one block.
fn unmap_in_block<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
    part: GfnRange,
) -> Result<u64, UnmapError> {
    let gfn = part.start();
    loop {
        P::at(Step::Z1);
        let mut cursor = space.table.cursor_on(gfn, Level::PD);
        let span = GfnRange::entry(gfn, cursor.level());
        match cursor.entry(gfn) {
            Entry::Absent => return Ok(0),
            Entry::Frozen(_) => {
                // A collapse holds the page table's lock, and needs this one to end.
                drop(cursor);
                drop(space.table.cursor_on(gfn, Level::PT));
            }
            // Z1 to Z5 of `fault`
            Entry::Leaf(_) | Entry::Marker(_) if range.covers(span) => {
                P::at(Step::Z2);
                let zap = cursor.unmap(span);
                P::at(Step::Z3);
                let gone = zap.flush(&*space.mirror)?;
                drop(cursor);
                P::at(Step::Z5);
                return Ok(gone.release(&space.pool));
            }
            Entry::Leaf(_) | Entry::Marker(_) => {
                cursor.split(gfn, |frame| space.pool.adopt(frame.block()))?;
            }
            Entry::Table(_) if range.covers(span) => {
                // If the flush fails, the frames stay in use for ever, and so do the reservations around
                // them: nothing of the block may be handed out.
                P::at(Step::Z2);
                let (zap, ended) = cursor.detach(gfn);
                P::at(Step::Z3);
                let gone = zap.flush(&*space.mirror)?;
                drop(cursor);
                P::at(Step::Z5);
                let frames = gone.release(&space.pool);
                end(space, ended);
                return Ok(frames);
            }
            Entry::Table(_) => {
                drop(cursor);
                let mut cursor = space.table.cursor_on(gfn, Level::PT);
                if cursor.level() != Level::PT {
                    continue;
                }
                P::at(Step::Z2);
                let zap = cursor.unmap(part);
                P::at(Step::Z3);
                let gone = zap.flush(&*space.mirror)?;
                let emptied = cursor.is_empty();
                drop(cursor);
                P::at(Step::Z5);
                let frames = gone.release(&space.pool);
                if emptied {
                    prune(space, part)?;
                }
                return Ok(frames);
            }
        }
    }
}

/// Frees the page table of `part` if it is still empty, and its block's unused frames with it.
fn prune<P: Protocol>(space: &AddressSpace<P>, part: GfnRange) -> Result<(), MirrorError> {
    let mut parent = space.table.cursor_on(part.start(), Level::PD);
    let Some((zap, ended)) = parent.detach_empty(part.start()) else { return Ok(()) };
    let nothing = zap.flush(&*space.mirror)?;
    drop(parent);
    let _none = nothing.release(&space.pool);
    end(space, ended);
    Ok(())
}

/// Unmaps everything, tables included: what is left is the root.
pub(crate) fn unmap_all<P: Protocol>(space: &AddressSpace<P>) -> Result<u64, UnmapError> {
    let mut frames = 0;
    for region in &space.ram {
        for part in region.range.chunks(Level::ROOT.entry_frames()) {
            let mut root = space.table.cursor_on(part.start(), Level::ROOT);
            if let Entry::Table(_) = root.entry(part.start()) {
                let (zap, ended) = root.detach(part.start());
                let gone = zap.flush(&*space.mirror)?;
                drop(root);
                frames += gone.release(&space.pool);
                end(space, ended);
            }
        }
    }
    Ok(frames)
}

fn end<P: Protocol>(space: &AddressSpace<P>, ended: Ended) {
    for reservation in ended {
        space.pool.unreserve(reservation);
    }
}
