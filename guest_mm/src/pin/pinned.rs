//! One pinned range.
#![allow(unsafe_code, reason = "hands out pieces of the pool's memory")]

#[cfg(not(loom))]
use vm_memory::VolatileSlice;

use crate::addr::GpaRange;
use crate::pool::Pool;
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, PinCount};
use crate::table::reclaim::Guard;

use super::runs::{PinRun, pieces};
use super::{Patience, PinError, Reader, pin_leaf, pin_rest};

/// Guest memory that a device may use until this is dropped: its frames stay where they are and are nobody
/// else's, whatever becomes of the guest addresses meanwhile. Memory that was pinned for writing counts
/// as written by a device when it is dropped. A range whose frames lie in several places keeps a list of them
/// on the heap; a [`super::PinBatch`] has room for it.
#[derive(Debug)]
#[must_use = "dropping it unpins"]
pub struct Pinned<'s> {
    pool: &'s Pool,
    range: GpaRange,
    access: Access,
    first: PinRun,
    /// The runs behind the first, of which most ranges have none.
    more: Option<Box<More>>,
}

#[derive(Debug)]
struct More(Vec<PinRun>);

/// Pins `range`; without a patience, waiting for as long as it takes. Inlined into the device's code: out of
/// line, moving the result costs a third of the pin.
#[inline(always)]
pub(crate) fn pin<'s, P: Protocol>(
    space: &'s AddressSpace<P>,
    range: GpaRange,
    access: Access,
    patience: Option<&Patience>,
) -> Result<Pinned<'s>, PinError> {
    let frames = range.frames();
    let guard = space.table.enter();
    let first = pin_leaf(&Reader::new(space, &guard), frames.start(), frames.frames(), access);
    if let Some(first) = first
        && first.frames() == frames.frames()
    {
        drop(guard);
        space.pin_counts.add(PinCount::Ranges as usize, 1);
        return Ok(Pinned { pool: &space.pool, range, access, first, more: None });
    }
    pin_slowly(space, guard, range, access, patience, first)
}

#[cold]
#[inline(never)]
fn pin_slowly<'s, P: Protocol>(
    space: &'s AddressSpace<P>,
    mut guard: Guard,
    range: GpaRange,
    access: Access,
    patience: Option<&Patience>,
    first: Option<PinRun>,
) -> Result<Pinned<'s>, PinError> {
    let patience = patience.unwrap_or(&Patience::FOREVER);
    let mut more = Vec::new();
    let frames = range.frames();
    let first = pin_rest(space, &mut guard, frames, access, patience, first, &mut more)?;
    space.pin_counts.add(PinCount::Ranges as usize, 1);
    let more = (!more.is_empty()).then(|| Box::new(More(more)));
    Ok(Pinned { pool: &space.pool, range, access, first, more })
}

impl Pinned<'_> {
    /// The guest addresses that were pinned.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// What for.
    pub fn access(&self) -> Access {
        self.access
    }

    #[cfg(all(test, loom))]
    pub(crate) fn first_frame(&self) -> crate::addr::FrameNo {
        self.pieces().next().expect("a pin is not empty").0
    }

    fn more(&self) -> &[PinRun] {
        self.more.as_ref().map_or(&[], |more| &more.0)
    }

    fn pieces(&self) -> impl Iterator<Item = (crate::addr::FrameNo, u64, u64)> {
        let offset = self.range.start().frame_offset() as u64;
        pieces(self.first, self.more().iter().copied(), offset, self.range.bytes())
    }
}

#[cfg(not(loom))]
impl Pinned<'_> {
    /// Its bytes, in order, in as few pieces as its frames allow. What was pinned for reading is only
    /// to be read: a write through such a slice is not told to those who look for written pages.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.pieces().map(|piece| slice(self.pool, piece))
    }

    /// The same pieces, for system calls. They are valid while this is held.
    pub fn iovecs(&self) -> impl Iterator<Item = linux_raw_sys::general::iovec> {
        self.pieces().map(|(first, offset, bytes)| linux_raw_sys::general::iovec {
            iov_base: self.pool.memory().address(first, offset as usize, bytes as usize).cast(),
            iov_len: bytes,
        })
    }

    /// The bytes of the pool's file at which those begin.
    pub(crate) fn offsets(&self) -> impl Iterator<Item = u64> {
        self.pieces().map(|(first, offset, _)| first.offset() + offset)
    }
}

/// The bytes of a piece of the pool, which the caller has pinned for as long as it uses them.
#[cfg(not(loom))]
pub(crate) fn slice(
    pool: &Pool,
    (first, offset, bytes): (crate::addr::FrameNo, u64, u64),
) -> VolatileSlice<'_> {
    let address = pool.memory().address(first, offset as usize, bytes as usize);
    // SAFETY:
    // 1. `address` has checked that the bytes lie in the direct map, which is mapped read-write for as long
    //    as the pool lives; the slice borrows the pool;
    // 2. the guest and other devices may change the bytes at any time: that is what volatile access is for.
    unsafe { VolatileSlice::new(address, bytes as usize) }
}

impl Drop for Pinned<'_> {
    #[inline]
    fn drop(&mut self) {
        self.first.unpin(self.pool, self.access);
        if self.more.is_some() {
            self.more().iter().for_each(|run| run.unpin(self.pool, self.access));
        }
    }
}
