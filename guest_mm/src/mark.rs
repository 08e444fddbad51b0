//! Pages that are not there for a reason: missing, guard, poisoned, returned.

use std::iter::Peekable;

use crate::addr::{Gfn, GfnRange};
use crate::entry::Marker;
use crate::geometry::Level;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, CutsPage};
use crate::table::OutOfTables;

/// Why a range could not be marked. Pages before the one that is named are marked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MarkError {
    /// Something is there: unmap it first.
    #[error("guest-physical {:#x} is in use and cannot be marked", gfn.gpa().as_u64())]
    InUse {
        /// The guest frame.
        gfn: Gfn,
    },
    /// It is not RAM.
    #[error("{0} cannot be marked: it is not RAM")]
    NotRam(GfnRange),
    /// It shows an image for good, so a touch cannot find zeroes there.
    #[error("{0} shows a shared image and cannot be marked as given back")]
    SharedImage(GfnRange),
    /// It cuts through a page of the pool.
    #[error(transparent)]
    CutsPage(#[from] CutsPage),
    /// There is no table page for the entries.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
}

/// Marks every page of `range`, all absent. An absent page is not in the window, so nothing is owed.
pub(crate) fn mark<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
    marker: Marker,
) -> Result<(), MarkError> {
    if !space.is_ram(range) {
        return Err(MarkError::NotRam(range));
    }
    if marker == Marker::Returned && space.shares_image(range.start()) {
        return Err(MarkError::SharedImage(range));
    }
    space.check_granule(range)?;
    for part in range.chunks(Level::PD.table_frames()) {
        let mut blocks = part.chunks(Level::PD.entry_frames()).peekable();
        while blocks.peek().is_some() {
            mark_blocks(space, &mut blocks, marker)?;
            let Some(rest) = blocks.next() else { continue };
            let mut cursor = space.table.cursor_at(rest.start(), Level::PT)?;
            for gfn in rest.iter() {
                if cursor.level() != Level::PT || !cursor.mark(gfn, marker) {
                    return Err(MarkError::InUse { gfn });
                }
            }
        }
    }
    Ok(())
}

/// Marks the first of `blocks`, all of one page directory, that are whole and absent, under one lock: whoever hands a machine over
/// waits for it.
fn mark_blocks<P: Protocol>(
    space: &AddressSpace<P>,
    blocks: &mut Peekable<impl Iterator<Item = GfnRange>>,
    marker: Marker,
) -> Result<(), OutOfTables> {
    let is_whole = |block: &GfnRange| block.frames() == Level::PD.entry_frames();
    let Some(first) = blocks.peek().filter(|block| is_whole(block)) else { return Ok(()) };
    let mut cursor = space.table.cursor_at(first.start(), Level::PD)?;
    if cursor.level() == Level::PD {
        let mut marked = |block: &GfnRange| is_whole(block) && cursor.mark(block.start(), marker);
        while blocks.next_if(&mut marked).is_some() {}
    }
    Ok(())
}
