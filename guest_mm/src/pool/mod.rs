//! The memory itself: frames, who owns them, and how their bytes are reached.
//!
//! A guest's 2 MiB range *reserves* a block at its first touch and its pages are claimed in place, so
//! that the block can later be mapped huge without a copy. A reservation is a preference, not a right:
//! when the pool runs out, the oldest ones are broken up and their unused frames go to whoever asks.
//! (FreeBSD's `vm_reserv` is the same idea.)
//!
//! Lock order: the pool's lock is a leaf; it is taken under any table's lock and none is taken under it.

#[cfg(not(loom))]
mod backing;
mod bits;
mod buddy;
#[cfg(not(loom))]
mod direct_map;
#[cfg(loom)]
#[path = "model_memory.rs"]
mod direct_map;
mod frame;
#[cfg(not(loom))]
pub(crate) mod host_range;
mod ledger;
mod own_run;
mod pins;
mod to_host;

use crate::addr::{BlockNo, FrameNo, PageSize};
use crate::sync::{AtomicU64, Ordering};

#[cfg(not(loom))]
pub use backing::{BackingChoice, BackingError, BackingKind};
use direct_map::DirectMap;
pub use frame::{FrameState, Owner};
pub(crate) use frame::{FrameTable, FrameWords};
use ledger::Ledger;
pub(crate) use ledger::Reservation;
pub use ledger::{Exhausted, PoolUsage};
pub(crate) use own_run::OwnRun;
pub(crate) use pins::Dirty;
pub(crate) use to_host::ToHost;

/// The pool. Shared by all guests of a process.
#[derive(Debug)]
pub struct Pool {
    memory: DirectMap,
    #[cfg(not(loom))]
    backing: backing::Backing,
    ledger: Ledger,
    /// Bytes that went back to the host. A statistic.
    returned_bytes: AtomicU64,
}

#[cfg(not(loom))]
impl Pool {
    /// A pool of `bytes`, a multiple of 2 MiB, for guests whose faults are served in `fault_size`.
    ///
    /// # Errors
    /// The backing that was asked for cannot be had.
    ///
    /// # Panics
    /// If `bytes` is 0 or not a multiple of 2 MiB.
    pub fn new(
        choice: BackingChoice,
        bytes: u64,
        fault_size: PageSize,
    ) -> Result<Pool, BackingError> {
        assert!(bytes > 0 && bytes.is_multiple_of(PageSize::Size2M.bytes()));
        let backing = backing::Backing::open(choice, bytes, fault_size)?;
        let memory =
            DirectMap::new(&backing.file, bytes).map_err(|source| BackingError::Create {
                kind: backing.kind,
                bytes,
                step: "mmap",
                source,
                remedy: backing.kind.remedy(),
            })?;
        let ledger = Ledger::new(bytes / crate::geometry::FRAME_BYTES);
        Ok(Pool { memory, backing, ledger, returned_bytes: AtomicU64::new(0) })
    }

    /// What the memory lies on.
    pub fn kind(&self) -> BackingKind {
        self.backing.kind
    }

    /// The smallest page that a window on it can hold.
    pub(crate) fn granule(&self) -> PageSize {
        self.backing.kind.granule()
    }

    /// Whether a block of it is one folio of the host's, if memory is not too scattered for that.
    pub(crate) fn has_huge_folios(&self) -> bool {
        self.backing.huge_folios
    }

    /// One line: what was chosen, and why.
    pub fn describe(&self) -> String {
        format!("{} ({})", self.backing.kind, self.backing.why)
    }

    /// The file behind the pool, for the mirror's window.
    pub(crate) fn file(&self) -> &impl std::os::fd::AsFd {
        &self.backing.file
    }
}

#[cfg(loom)]
impl Pool {
    /// A pool of `frames` that hold a word each.
    pub(crate) fn model(frames: u64) -> Pool {
        let (memory, ledger) = (DirectMap::new(frames), Ledger::new(frames));
        Pool { memory, ledger, returned_bytes: AtomicU64::new(0) }
    }

    /// The smallest page that a window on it can hold.
    pub(crate) fn granule(&self) -> PageSize {
        PageSize::Size4K
    }
}

impl Pool {
    /// How many frames it has.
    pub fn nr_frames(&self) -> u64 {
        self.ledger.nr_frames()
    }

    /// How many frames are what. The parts may be a moment apart.
    pub fn usage(&self) -> PoolUsage {
        let returned_bytes = self.returned_bytes.load(Ordering::Relaxed);
        PoolUsage { host_bytes: self.host_bytes(), returned_bytes, ..self.ledger.usage() }
    }

    /// The state of one frame.
    pub fn frame_state(&self, frame: FrameNo) -> FrameState {
        self.ledger.frame_state(frame)
    }

    /// Bytes of bookkeeping for the whole pool, touched or not.
    pub fn metadata_bytes(&self) -> u64 {
        self.ledger.metadata_bytes()
    }

    /// A preference for the block `hint`, or for another where that one is not whole.
    pub(crate) fn reserve(&self, hint: BlockNo) -> Option<Reservation> {
        self.ledger.reserve(hint)
    }

    /// Frame `offset` of a reservation, in use from now on, its bytes zero; none when the reservation
    /// was broken up or the frame is in use.
    pub(crate) fn claim_zeroed(&self, reservation: Reservation, offset: u64) -> Option<FrameNo> {
        let frame = self.ledger.claim(reservation, offset)?;
        self.clear(frame, 1);
        Some(frame)
    }

    /// As [`Pool::claim_zeroed`], its bytes whatever they were: the caller writes all of them.
    pub(crate) fn claim(&self, reservation: Reservation, offset: u64) -> Option<FrameNo> {
        let frame = self.ledger.claim(reservation, offset)?;
        self.ledger.set_written(frame, 1);
        Some(frame)
    }

    /// Any frame, in use from now on, its bytes whatever they were: the caller writes all of them.
    pub(crate) fn alloc(&self) -> Result<FrameNo, Exhausted> {
        let frame = self.ledger.alloc_frame()?;
        self.ledger.set_written(frame, 1);
        Ok(frame)
    }

    /// Any frame, in use from now on, its bytes zero.
    pub(crate) fn alloc_zeroed(&self) -> Result<FrameNo, Exhausted> {
        let frame = self.ledger.alloc_frame()?;
        self.clear(frame, 1);
        Ok(frame)
    }

    /// A whole run of `size`, in use from now on, its bytes zero; none when no run is whole.
    pub(crate) fn alloc_run_zeroed(&self, size: PageSize, hint: FrameNo) -> Option<FrameNo> {
        let first = self.ledger.alloc_run(size, hint)?;
        if self.is_backed(first, size.frames()) {
            self.clear(first, size.frames());
            return Some(first);
        }
        self.ledger.release(first, size.frames());
        None
    }

    /// A whole block, in use from now on, its bytes whatever they were: the caller writes all of them.
    pub(crate) fn alloc_block(&self, hint: BlockNo) -> Option<BlockNo> {
        let first = self.ledger.alloc_run(PageSize::Size2M, hint.first())?;
        self.ledger.set_written(first, PageSize::Size2M.frames());
        Some(first.block())
    }

    /// Makes a reservation of a block whose frames are in use: what is freed of it later stays with its
    /// guest block.
    pub(crate) fn adopt(&self, block: BlockNo) -> Option<Reservation> {
        self.ledger.adopt(block)
    }

    /// Keeps everybody else from the pool's books.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn hold_books(&self) -> impl Sized + '_ {
        self.ledger.hold_books()
    }

    /// Ends a reservation. Frames of it that are in use stay in use.
    pub(crate) fn unreserve(&self, reservation: Reservation) {
        self.ledger.unreserve(reservation);
    }

    /// Drops a reference of each of `frames` from `first` on. Those that have no other are free, and
    /// those that a device has pinned as soon as it lets go. No translation to them, of those that the reference was
    /// for, may be left anywhere (U3 and U4 of [`pins`]).
    pub(crate) fn release(&self, first: FrameNo, frames: u64) {
        self.ledger.release(first, frames);
    }

    /// Has the host back a free block whose bytes are zero, so that whoever takes it finds it ready; whether it did. One
    /// that is taken meanwhile loses nothing: this changes no byte.
    #[cfg(not(loom))]
    pub(crate) fn prepare(&self, block: BlockNo) -> bool {
        let state = self.ledger.frame_state(block.first());
        let unused = state.owner == Owner::Buddy && !state.written;
        // Failing, the block is backed when it is taken.
        unused && self.memory.prefault(block.first(), PageSize::Size2M.frames()).is_ok()
    }

    /// The pins and dirty notes of all frames (P2 of [`pins`]).
    #[inline]
    pub(crate) fn frames(&self) -> &FrameTable {
        self.ledger.frames()
    }

    /// P7 of [`pins`]: the claim ends.
    #[inline]
    pub(crate) fn unpin(&self, frame: FrameNo) {
        if self.frames().words().unpin(frame) {
            self.reap(frame);
        }
    }

    /// P7 of [`pins`]: the last claim on an orphan has ended.
    #[cold]
    pub(crate) fn reap(&self, frame: FrameNo) {
        self.ledger.reap(frame);
    }

    /// P7 of [`pins`]: the claim on a block ends.
    #[inline]
    pub(crate) fn unpin_block(&self, block: BlockNo) {
        if self.ledger.frames().unpin_block(block) {
            self.ledger.reap_block(block);
        }
    }

    /// Whether a device has written to the frame since this was last asked; a frame that is pinned stays
    /// dirty.
    pub(crate) fn take_dirty(&self, frame: FrameNo) -> bool {
        let block = frame.block();
        self.ledger.spread_dirty(block);
        self.ledger.frames().take_dirty(frame)
    }

    /// The bytes of the page `from` go to `to`, with the note that a device has written them. Nobody else
    /// uses either.
    pub(crate) fn copy(&self, from: FrameNo, to: FrameNo) {
        self.memory.copy(from, to);
        if self.frame_state(from).dirty {
            self.frames().words().set_dirty(to);
        }
    }

    /// The bytes of the pool.
    #[inline]
    pub(crate) fn memory(&self) -> &DirectMap {
        &self.memory
    }

    /// Gives a run, ours alone, the bytes of fresh pages; the host's own zeroes serve when they are.
    fn clear(&self, first: FrameNo, frames: u64) {
        if self.ledger.set_written(first, frames) {
            self.memory.zero(first, frames);
        } else {
            self.memory.populate(first, frames);
        }
    }
}
