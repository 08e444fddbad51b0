//! Which pages devices have written: what the guest's own dirty tracking cannot see.

use crate::addr::{Gfn, GfnRange};
use crate::entry::Entry;
use crate::geometry::Level;
use crate::protocol::Protocol;
use crate::space::AddressSpace;

/// Calls `see` for every page of `range` that a device has written since this was last asked. One that others use too is told
/// each time, until it is the guest's own again.
pub(crate) fn take<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
    mut see: impl FnMut(Gfn),
) {
    for part in range.chunks(Level::PT.table_frames()) {
        for gfn in part.iter() {
            // The lock keeps a collapse from carrying the note elsewhere between the look at the entry and
            // the look at the frame.
            let cursor = space.table.cursor_on(gfn, Level::PT);
            let Entry::Leaf(leaf) = cursor.entry(gfn) else { continue };
            let frame = leaf.frame.add(gfn.offset_in(cursor.level().entry_frames()));
            let merged = space.dirty_merged.lock().remove(&gfn);
            if space.pool.take_dirty(frame) || merged {
                see(gfn);
            }
        }
    }
}
