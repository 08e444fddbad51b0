//! Pages that are not there for a reason: missing, guard, poisoned.

use crate::addr::{Gfn, GfnRange, PageSize};
use crate::entry::Marker;
use crate::geometry::Level;
use crate::protocol::Protocol;
use crate::space::AddressSpace;
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
    /// The pool's pages cannot be told apart so finely.
    #[error("{range} cannot be marked: the pool is mapped in pages of {granule}")]
    Granule {
        /// What was to be marked.
        range: GfnRange,
        /// The pool's page.
        granule: PageSize,
    },
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
    let granule = space.pool.granule();
    let aligned = |frame: u64| frame.is_multiple_of(granule.frames());
    if !aligned(range.start().as_u64()) || !aligned(range.frames()) {
        return Err(MarkError::Granule { range, granule });
    }
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
