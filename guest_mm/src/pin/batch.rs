//! Many ranges at once: a queue's worth of descriptors.

use crate::addr::GpaRange;
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, PinCount};
use crate::table::reclaim::Guard;

use super::runs::{PinRun, pieces};
use super::{Patience, PinError, Reader, pin_leaf, pin_rest};

/// Ranges that are pinned together, under one guard, and unpinned together. The room for them is kept from
/// one time to the next, so a batch that has its size allocates nothing.
#[derive(Debug)]
pub struct PinBatch<'s, P: Protocol> {
    space: &'s AddressSpace<P>,
    members: Vec<Member>,
    /// The runs of all members behind their first ones.
    more: Vec<PinRun>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    range: GpaRange,
    access: Access,
    first: PinRun,
    /// Its further runs end here, and the next member's begin.
    end: u32,
}

impl<'s, P: Protocol> PinBatch<'s, P> {
    pub(crate) fn new(space: &'s AddressSpace<P>) -> PinBatch<'s, P> {
        PinBatch { space, members: Vec::new(), more: Vec::new() }
    }

    /// Makes room for `ranges` that consist of `runs` together: a run is a piece of guest memory whose
    /// frames lie in order, so pages at random are a run each.
    pub fn reserve(&mut self, ranges: usize, runs: usize) {
        self.members.reserve(ranges.saturating_sub(self.members.len()));
        self.more.reserve(runs.saturating_sub(ranges).saturating_sub(self.more.len()));
    }

    /// Pins all of `wanted` beside what the batch holds already. The iterator runs under the guard, so it must
    /// not wait for anything.
    ///
    /// # Errors
    /// [`PinError`]; none of `wanted` is pinned.
    #[inline]
    pub fn pin(
        &mut self,
        wanted: impl IntoIterator<Item = (GpaRange, Access)>,
    ) -> Result<(), PinError> {
        self.pin_within(wanted, &Patience::FOREVER)
    }

    /// As [`PinBatch::pin`], waiting for pages no longer than `patience` lasts.
    ///
    /// # Errors
    /// As for [`PinBatch::pin`].
    #[inline]
    pub fn pin_within(
        &mut self,
        wanted: impl IntoIterator<Item = (GpaRange, Access)>,
        patience: &Patience,
    ) -> Result<(), PinError> {
        let (space, before) = (self.space, self.members.len());
        let mut guard = space.table.enter();
        let mut reader = Reader::new(space, &guard);
        let mut result = Ok(());
        for (range, access) in wanted {
            let (frames, end) = (range.frames(), self.more.len() as u32);
            match pin_leaf(&reader, frames.start(), frames.frames(), access) {
                Some(first) if first.frames() == frames.frames() => {
                    self.members.push(Member { range, access, first, end });
                }
                first => {
                    result = self.pin_slowly(&mut guard, range, access, patience, first);
                    reader = Reader::new(space, &guard);
                }
            }
            if result.is_err() {
                break;
            }
        }
        drop(guard);
        if result.is_err() {
            // No device has seen any of it, so nobody wrote.
            self.members[before..].iter_mut().for_each(|member| member.access = Access::Read);
            self.unpin_from(before);
            return result;
        }
        let pinned = self.members.len() - before;
        space.pin_counts.add(PinCount::Ranges as usize, pinned as u64);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn pin_slowly(
        &mut self,
        guard: &mut Guard,
        range: GpaRange,
        access: Access,
        patience: &Patience,
        first: Option<PinRun>,
    ) -> Result<(), PinError> {
        let more = &mut self.more;
        let first = pin_rest(self.space, guard, range.frames(), access, patience, first, more)?;
        let end = self.more.len() as u32;
        self.members.push(Member { range, access, first, end });
        Ok(())
    }

    /// How many ranges are pinned.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Unpins all; the room stays.
    #[inline]
    pub fn unpin(&mut self) {
        self.unpin_from(0);
    }

    #[inline]
    fn unpin_from(&mut self, from: usize) {
        let kept = self.start(from);
        let pool = &*self.space.pool;
        let words = pool.frames().words();
        for member in &self.members[from..] {
            member.first.unpin_by(pool, words, member.access);
        }
        if self.more.len() > kept {
            for index in from..self.members.len() {
                let access = self.members[index].access;
                self.more_of(index).iter().for_each(|run| run.unpin(&self.space.pool, access));
            }
            self.more.truncate(kept);
        }
        self.members.truncate(from);
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.members[before].end as usize)
    }

    fn more_of(&self, index: usize) -> &[PinRun] {
        &self.more[self.start(index)..self.members[index].end as usize]
    }
}

#[cfg(not(loom))]
impl<P: Protocol> PinBatch<'_, P> {
    /// The bytes of range `index`, as [`super::Pinned::slices`].
    ///
    /// # Panics
    /// If there is no such range.
    pub fn slices(&self, index: usize) -> impl Iterator<Item = vm_memory::VolatileSlice<'_>> {
        self.pieces(index).map(|piece| super::slice(&self.space.pool, piece))
    }

    /// The same as pieces of the pool: the first frame, the offset in it, and the bytes from there on.
    pub(crate) fn pieces(
        &self,
        index: usize,
    ) -> impl Iterator<Item = (crate::addr::FrameNo, u64, u64)> {
        let Member { range, first, .. } = self.members[index];
        let offset = range.start().frame_offset() as u64;
        pieces(first, self.more_of(index), offset, range.bytes())
    }
}

impl<P: Protocol> Drop for PinBatch<'_, P> {
    fn drop(&mut self) {
        self.unpin();
    }
}
