//! Many ranges at once: a queue's worth of descriptors.

use std::ops::Range;

use crate::addr::GpaRange;
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::AddressSpace;

use super::runs::Runs;
use super::{Patience, PinError, pin_range};

/// Ranges that are pinned together, under one guard, and unpinned together. The room for them is kept from
/// one time to the next, so a batch that has its size allocates nothing.
#[derive(Debug)]
pub struct PinBatch<'s, P: Protocol> {
    space: &'s AddressSpace<P>,
    ranges: Vec<Member>,
    runs: Runs,
}

#[derive(Clone, Debug)]
struct Member {
    range: GpaRange,
    access: Access,
    /// Its runs end here, and the next member's begin.
    end: u32,
}

impl<'s, P: Protocol> PinBatch<'s, P> {
    pub(crate) fn new(space: &'s AddressSpace<P>) -> PinBatch<'s, P> {
        PinBatch { space, ranges: Vec::new(), runs: Runs::default() }
    }

    /// Makes room for `ranges` that consist of `runs` together: a run is a piece of guest memory whose
    /// frames lie in order, so pages at random are a run each.
    pub fn reserve(&mut self, ranges: usize, runs: usize) {
        self.ranges.reserve(ranges.saturating_sub(self.ranges.len()));
        self.runs.reserve(runs);
    }

    /// Pins all of `wanted` beside what the batch holds already.
    ///
    /// # Errors
    /// [`PinError`]; none of `wanted` is pinned.
    #[inline]
    pub fn pin(
        &mut self,
        wanted: impl IntoIterator<Item = (GpaRange, Access)>,
    ) -> Result<(), PinError> {
        self.pin_within(wanted, &Patience::forever())
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
        let before = self.ranges.len();
        let mut guard = self.space.table.enter();
        for (range, access) in wanted {
            let frames = range.frames();
            let result =
                pin_range(self.space, &mut guard, frames, access, patience, &mut self.runs);
            self.ranges.push(Member { range, access, end: self.runs.len() as u32 });
            if result.is_err() {
                drop(guard);
                self.unpin_from(before);
                return result;
            }
        }
        Ok(())
    }

    /// How many ranges are pinned.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Unpins all; the room stays.
    #[inline]
    pub fn unpin(&mut self) {
        self.unpin_from(0);
    }

    #[inline]
    fn unpin_from(&mut self, from: usize) {
        let mut start = self.start(from);
        let kept = start;
        for member in &self.ranges[from..] {
            let end = member.end as usize;
            self.runs.unpin(start..end, &self.space.pool, member.access);
            start = end;
        }
        self.ranges.truncate(from);
        self.runs.truncate(kept);
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ranges[before].end as usize)
    }

    fn runs_of(&self, index: usize) -> Range<usize> {
        self.start(index)..self.ranges[index].end as usize
    }
}

#[cfg(not(loom))]
impl<P: Protocol> PinBatch<'_, P> {
    /// The bytes of range `index`, as [`super::Pinned::slices`].
    ///
    /// # Panics
    /// If there is no such range.
    pub fn slices(&self, index: usize) -> impl Iterator<Item = vm_memory::VolatileSlice<'_>> {
        let range = self.ranges[index].range;
        let offset = range.start().frame_offset() as u64;
        self.runs
            .pieces(self.runs_of(index), offset, range.bytes())
            .map(|piece| super::pinned::slice(&self.space.pool, piece))
    }
}

impl<P: Protocol> Drop for PinBatch<'_, P> {
    fn drop(&mut self) {
        self.unpin();
    }
}
