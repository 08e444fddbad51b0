//! Changing what the guest may do with memory that it has.

use crate::addr::{GfnRange, Gpa};
use crate::entry::{Entry, Leaf};
use crate::geometry::Level;
use crate::mirror::MirrorError;
use crate::prot::Prot;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, CutsPage};
use crate::table::OutOfTables;

/// Why the rights could not be changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtectError {
    /// It cuts through a page of the pool.
    #[error(transparent)]
    CutsPage(#[from] CutsPage),
    /// Part of the range shows an image for good.
    #[error(
        "guest-physical {gpa} shows a shared image, which nobody can be given the right to write to"
    )]
    SharedImage {
        /// The first such page.
        gpa: Gpa,
    },
    /// A huge leaf that is only partly in the range could not be split.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// The table has the new rights, the window may have the old ones.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Gives what is mapped in `range` the rights `prot`, splitting huge leaves at its ends. What is absent
/// stays absent, and gets the rights of RAM when it is touched.
pub(crate) fn protect<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
    prot: Prot,
) -> Result<(), ProtectError> {
    space.check_granule(range)?;
    if prot != Prot::R && prot != Prot::Rx {
        let shared = space.ram.iter().filter(|region| space.shares_image(region.range.start()));
        if let Some(shown) = shared.filter_map(|region| region.range.intersection(range)).next() {
            return Err(ProtectError::SharedImage { gpa: shown.start().gpa() });
        }
    }
    let exclusive = |leaf: Leaf| space.pool.frames().is_exclusive(leaf.frame);
    let mut next = range.start();
    while next < range.end() {
        let mut cursor = space.table.cursor_on(next, Level::PT);
        let span = GfnRange::entry(next, cursor.level());
        let whole = if cursor.level() == Level::PT { cursor.range() } else { span };
        let Some(part) = whole.intersection(range) else { break };
        match cursor.entry(next) {
            Entry::Leaf(_) if cursor.level() > Level::PT && !range.covers(span) => {
                cursor.split(next, |frame| space.pool.adopt(frame.block()))?;
                continue;
            }
            Entry::Absent | Entry::Marker(_) if cursor.level() > Level::PT => {}
            _ => {
                let nothing = cursor.protect(part, prot, exclusive).flush(&*space.mirror)?;
                drop(cursor);
                let _none = nothing.release(&space.pool);
            }
        }
        next = part.end();
    }
    Ok(())
}
