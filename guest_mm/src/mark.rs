//! Pages that are not there for a reason: missing, guard, poisoned, returned.

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
    for part in range.chunks(Level::PD.entry_frames()) {
        if part.frames() == Level::PD.entry_frames() {
            let mut cursor = space.table.cursor_at(part.start(), Level::PD)?;
            if cursor.level() == Level::PD && cursor.mark(part.start(), marker) {
                continue;
            }
        }
        let mut cursor = space.table.cursor_at(part.start(), Level::PT)?;
        for gfn in part.iter() {
            if cursor.level() != Level::PT || !cursor.mark(gfn, marker) {
                return Err(MarkError::InUse { gfn });
            }
        }
    }
    Ok(())
}
