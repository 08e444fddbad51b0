//! Bytes into and out of guest memory, by the monitor itself: boot images, reports. Under the lock of
//! the table page, so correct against everything and fast for nobody: devices pin instead.

use crate::addr::{FrameNo, Gpa};
use crate::entry::Entry;
use crate::geometry::{FRAME_BYTES, Level};
use crate::protocol::Protocol;
use crate::space::AddressSpace;

/// A page that has no bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("guest-physical {gpa} is not mapped")]
pub struct NotMapped {
    /// The first byte that could not be copied.
    pub gpa: Gpa,
}

/// Why bytes could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WriteError {
    /// A page has no bytes.
    NotMapped(NotMapped),
    /// A page is not the guest's alone.
    Shared {
        /// Where it begins to be so.
        at: Gpa,
        /// Bytes before that, which are written.
        written: usize,
    },
}

/// Copies `from` into mapped memory at `gpa`.
pub(crate) fn write<P: Protocol>(
    space: &AddressSpace<P>,
    gpa: Gpa,
    from: &[u8],
) -> Result<(), WriteError> {
    each_page(space, gpa, from.len(), |frame, at, part| {
        if !space.pool.frames().is_exclusive(frame) {
            return Err(WriteError::Shared { at, written: part.start });
        }
        space.pool.memory().write(frame, at.frame_offset(), &from[part]);
        Ok(())
    })
}

/// Copies mapped memory at `gpa` to `into`.
pub(crate) fn read<P: Protocol>(
    space: &AddressSpace<P>,
    gpa: Gpa,
    into: &mut [u8],
) -> Result<(), NotMapped> {
    let bytes = into.len();
    let read = each_page(space, gpa, bytes, |frame, at, part| {
        space.pool.memory().read(frame, at.frame_offset(), &mut into[part]);
        Ok(())
    });
    match read {
        Err(WriteError::NotMapped(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Calls `copy` for each page of the `bytes` at `gpa` with its frame, where in guest memory it is, and the part of the
/// buffer.
fn each_page<P: Protocol>(
    space: &AddressSpace<P>,
    gpa: Gpa,
    bytes: usize,
    mut copy: impl FnMut(FrameNo, Gpa, std::ops::Range<usize>) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    let not_mapped = |gpa| WriteError::NotMapped(NotMapped { gpa });
    let mut done = 0;
    while done < bytes {
        let at = gpa.checked_add(done as u64).ok_or(not_mapped(gpa))?;
        let take = (FRAME_BYTES as usize - at.frame_offset()).min(bytes - done);
        // Also keeps the address inside of what the tables can map.
        if space.region(at.gfn()).is_none() {
            return Err(not_mapped(at));
        }
        let cursor = space.table.cursor_on(at.gfn(), Level::PT);
        let Entry::Leaf(leaf) = cursor.entry(at.gfn()) else { return Err(not_mapped(at)) };
        let frame = leaf.frame.add(at.gfn().offset_in(cursor.level().entry_frames()));
        copy(frame, at, done..done + take)?;
        done += take;
    }
    Ok(())
}
