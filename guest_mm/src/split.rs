//! Huge leaves become small ones. The frames stay where they are, so the guest notices nothing.

use crate::addr::{GfnRange, PageSize};
use crate::entry::Entry;
use crate::geometry::Level;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, CutsPage};
use crate::table::OutOfTables;

/// Why leaves could not be split. Those before are.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SplitError {
    /// The pool's pages are larger than what was asked for.
    #[error(transparent)]
    CutsPage(#[from] CutsPage),
    /// There is no table page for the parts.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
}

/// Splits every leaf of `range` that is larger than `size`; how many leaves were.
pub(crate) fn split<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
    size: PageSize,
) -> Result<u64, SplitError> {
    let granule = space.pool.granule();
    if size < granule {
        return Err(CutsPage { range, granule }.into());
    }
    let target = size.level().unwrap_or(Level::ROOT);
    let mut leaves = 0;
    for part in range.chunks(target.entry_frames().max(Level::PD.entry_frames())) {
        loop {
            let mut cursor = space.table.cursor_on(part.start(), target);
            let huge =
                cursor.level() > target && matches!(cursor.entry(part.start()), Entry::Leaf(_));
            if !huge {
                break;
            }
            cursor.split(part.start(), |frame| space.pool.adopt(frame.block()))?;
            leaves += 1;
        }
    }
    Ok(leaves)
}
