//! Changing what the guest may do with memory that it has.

use crate::addr::GfnRange;
use crate::entry::Entry;
use crate::geometry::Level;
use crate::mirror::MirrorError;
use crate::prot::Prot;
use crate::protocol::Protocol;
use crate::space::AddressSpace;
use crate::table::OutOfTables;

/// Why the rights could not be changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtectError {
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
    for part in range.chunks(Level::PD.entry_frames()) {
        let gfn = part.start();
        loop {
            let mut cursor = space.table.cursor_on(gfn, Level::PT);
            let span = GfnRange::entry(gfn, cursor.level());
            let within = match (cursor.entry(gfn), cursor.level()) {
                (_, Level::PT) => part,
                (Entry::Leaf(_), _) if range.covers(span) => span,
                (Entry::Leaf(_), _) => {
                    cursor.split(gfn, |frame| space.pool.adopt(frame.block()))?;
                    continue;
                }
                _ => break,
            };
            let nothing = cursor.protect(within, prot).flush(&*space.mirror)?;
            drop(cursor);
            let _none = nothing.release(&space.pool);
            break;
        }
    }
    Ok(())
}
