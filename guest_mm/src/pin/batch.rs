//! Many ranges at once: a queue's worth of descriptors.

use std::sync::Arc as Shared;

use crate::addr::GpaRange;
use crate::geometry::FRAME_BYTES;
use crate::prot::Access;
use crate::protocol::{Protocol, Sound, Step};
use crate::space::{AddressSpace, PinCount};
use crate::table::reclaim::Guard;
use crate::table::walk::Directory;

use super::runs::PinRun;
#[cfg(not(loom))]
use super::runs::pieces;
use super::{Patience, PinError, Reader, pin_located, pin_rest};

/// Ranges that are pinned together, under one guard, and unpinned together. The room for them is kept from
/// one time to the next, so a batch that has its size allocates nothing.
#[derive(Debug)]
pub struct PinBatch<'s, P: Protocol> {
    space: &'s AddressSpace<P>,
    members: Members,
}

/// A [`PinBatch`] that borrows nothing, for requests that outlive whoever began them.
#[derive(Debug)]
pub struct OwnedPinBatch<P: Protocol = Sound> {
    space: Shared<AddressSpace<P>>,
    members: Members,
}

/// What a batch holds.
#[derive(Debug, Default)]
struct Members {
    members: Vec<Member>,
    /// The runs of members behind their first ones, with the member's index; in order.
    more: Vec<(u32, PinRun)>,
    /// Room for the runs of one member, empty but while it is pinned.
    room: Vec<PinRun>,
}

/// A range while it is pinned. Two words: the next pin waits until all that was stored has left the store
/// buffer, as its locked instruction does.
#[derive(Clone, Copy, Debug)]
struct Member {
    first: PinRun,
    place: Place,
}

/// Where a range lies in its runs, and what for: the offset in its first page in bits 11:0, bit 12 for writes,
/// how many bytes in bits 63:13.
#[derive(Clone, Copy, Debug)]
struct Place(u64);

impl Place {
    #[inline]
    fn new(range: GpaRange, access: Access) -> Place {
        let write = u64::from(access == Access::Write);
        Place(range.bytes() << 13 | write << 12 | range.start().frame_offset() as u64)
    }

    #[inline]
    fn access(self) -> Access {
        if self.0 & 1 << 12 == 0 { Access::Read } else { Access::Write }
    }

    fn offset(self) -> u64 {
        self.0 & (FRAME_BYTES - 1)
    }

    fn bytes(self) -> u64 {
        self.0 >> 13
    }
}

impl<'s, P: Protocol> PinBatch<'s, P> {
    pub(crate) fn new(space: &'s AddressSpace<P>) -> PinBatch<'s, P> {
        PinBatch { space, members: Members::default() }
    }
}

impl<P: Protocol> OwnedPinBatch<P> {
    pub(crate) fn new(space: Shared<AddressSpace<P>>) -> OwnedPinBatch<P> {
        OwnedPinBatch { space, members: Members::default() }
    }

    /// Gives up room beyond `ranges` ranges and runs, when nothing is pinned.
    pub fn shrink_to(&mut self, ranges: usize) {
        self.members.members.shrink_to(ranges);
        self.members.more.shrink_to(ranges);
        self.members.room.shrink_to(ranges);
    }
}

/// What both kinds of batch can do.
macro_rules! faces {
    ($batch:ty) => {
        impl<P: Protocol> $batch {
            /// Makes room for `ranges` that consist of `runs` together: a run is a piece of guest memory whose
            /// frames lie in order, so pages at random are a run each.
            pub fn reserve(&mut self, ranges: usize, runs: usize) {
                self.members.reserve(ranges, runs);
            }

            /// Pins all of `wanted` beside what the batch holds already. The iterator runs under the guard, so it must
            /// not wait for anything; behind a range that is refused it is not asked for more.
            ///
            /// # Errors
            /// [`PinError`]; none of `wanted` is pinned.
            #[inline]
            pub fn pin(
                &mut self,
                wanted: impl IntoIterator<Item = (GpaRange, Access)>,
            ) -> Result<(), PinError> {
                self.members.pin(&self.space, wanted, &Patience::FOREVER)
            }

            /// As `pin`, waiting for pages no longer than `patience` lasts.
            ///
            /// # Errors
            /// As for `pin`.
            #[inline]
            pub fn pin_within(
                &mut self,
                wanted: impl IntoIterator<Item = (GpaRange, Access)>,
                patience: &Patience,
            ) -> Result<(), PinError> {
                self.members.pin(&self.space, wanted, patience)
            }

            /// How many ranges are pinned.
            pub fn len(&self) -> usize {
                self.members.members.len()
            }

            /// Whether none is.
            pub fn is_empty(&self) -> bool {
                self.members.members.is_empty()
            }

            /// Unpins all; the room stays.
            #[inline]
            pub fn unpin(&mut self) {
                self.members.unpin_from(&self.space, 0, None);
            }

            /// The bytes of range `index`, as [`super::Pinned::slices`].
            ///
            /// # Panics
            /// If there is no such range.
            #[cfg(not(loom))]
            pub fn slices(
                &self,
                index: usize,
            ) -> impl Iterator<Item = vm_memory::VolatileSlice<'_>> {
                let pool = &self.space.pool;
                self.members.pieces(index).map(move |piece| super::slice(pool, piece))
            }
        }

        impl<P: Protocol> Drop for $batch {
            fn drop(&mut self) {
                self.unpin();
            }
        }
    };
}

faces!(PinBatch<'_, P>);
faces!(OwnedPinBatch<P>);

#[cfg(not(loom))]
impl<P: Protocol> PinBatch<'_, P> {
    /// The bytes of range `index` as pieces of the pool: the first frame, the offset in it, and the bytes from there on.
    pub(crate) fn pieces(
        &self,
        index: usize,
    ) -> impl Iterator<Item = (crate::addr::FrameNo, u64, u64)> {
        self.members.pieces(index)
    }
}

impl Members {
    fn reserve(&mut self, ranges: usize, runs: usize) {
        self.members.reserve(ranges.saturating_sub(self.members.len()));
        let more = runs.saturating_sub(ranges);
        self.more.reserve(more.saturating_sub(self.more.len()));
        self.room.reserve(more);
    }

    #[inline]
    fn pin<P: Protocol>(
        &mut self,
        space: &AddressSpace<P>,
        wanted: impl IntoIterator<Item = (GpaRange, Access)>,
        patience: &Patience,
    ) -> Result<(), PinError> {
        let before = self.members.len();
        let mut guard = space.table.enter();
        let mut reader = Reader::new(space, &guard);
        let mut near: Option<Directory<'_>> = None;
        let mut result = Ok(());
        for (range, access) in wanted {
            let frames = range.frames();
            let start = frames.start();
            // P1
            P::at(Step::P1);
            let found = match near {
                Some(directory) if directory.spans(start) => {
                    reader.tables.locate_in::<P>(directory, start)
                }
                _ => {
                    near = reader.tables.directory(start);
                    reader.tables.locate::<P>(start)
                }
            };
            match pin_located(&reader, &found, start, frames.frames(), access) {
                Some(first) if first.frames() == frames.frames() => {
                    self.members.push(Member { first, place: Place::new(range, access) });
                }
                first => {
                    result = self.pin_slowly(space, &mut guard, range, access, patience, first);
                    // The guard was left, perhaps.
                    (reader, near) = (Reader::new(space, &guard), None);
                }
            }
            if result.is_err() {
                break;
            }
        }
        drop(guard);
        if result.is_err() {
            // No device has seen any of it, so nobody wrote.
            self.unpin_from(space, before, Some(Access::Read));
            return result;
        }
        let pinned = self.members.len() - before;
        space.pin_counts.add(PinCount::Ranges as usize, pinned as u64);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn pin_slowly<P: Protocol>(
        &mut self,
        space: &AddressSpace<P>,
        guard: &mut Guard,
        range: GpaRange,
        access: Access,
        patience: &Patience,
        first: Option<PinRun>,
    ) -> Result<(), PinError> {
        let frames = range.frames();
        let first = pin_rest(space, guard, frames, access, patience, first, &mut self.room)?;
        let index = self.members.len() as u32;
        self.members.push(Member { first, place: Place::new(range, access) });
        self.more.extend(self.room.drain(..).map(|run| (index, run)));
        Ok(())
    }

    /// Unpins the members from `from` on, as if they had been pinned for `access` if that is given.
    #[inline]
    fn unpin_from<P: Protocol>(
        &mut self,
        space: &AddressSpace<P>,
        from: usize,
        access: Option<Access>,
    ) {
        let pool = &*space.pool;
        let words = pool.frames().words();
        for member in &self.members[from..] {
            let access = access.unwrap_or(member.place.access());
            member.first.unpin_by(pool, words, access);
        }
        let kept = self.more.partition_point(|more| (more.0 as usize) < from);
        for &(member, run) in &self.more[kept..] {
            let access = access.unwrap_or(self.members[member as usize].place.access());
            run.unpin(pool, access);
        }
        self.more.truncate(kept);
        self.members.truncate(from);
    }

    fn more_of(&self, index: usize) -> impl Iterator<Item = PinRun> {
        let start = self.more.partition_point(|more| (more.0 as usize) < index);
        self.more[start..]
            .iter()
            .take_while(move |more| more.0 as usize == index)
            .map(|more| more.1)
    }

    /// A range as pieces of the pool.
    #[cfg(not(loom))]
    fn pieces(&self, index: usize) -> impl Iterator<Item = (crate::addr::FrameNo, u64, u64)> {
        let Member { first, place } = self.members[index];
        pieces(first, self.more_of(index), place.offset(), place.bytes())
    }
}
