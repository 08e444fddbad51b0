//! One guest's memory: its RAM, its table, the mirror of it, and the pool behind it. The operations of
//! the floor above take it whole.

use std::collections::BTreeSet;
use std::sync::Arc as Shared;

use crate::addr::{BlockNo, FrameNo, Gfn, GfnRange, Gpa, PageSize};
use crate::image::Image;
use crate::mirror::Mirror;
use crate::notes::Notes;
use crate::pool::Pool;
use crate::prot::Prot;
use crate::protocol::Protocol;
use crate::sync::{Apart, Arc, AtomicU64, Held, Lock, Ordering, Rank};
use crate::table::Table;
use crate::tally::Tally;
use crate::wait::Waits;

/// What RAM over an image does with a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// The page is copied, and the copy is the guest's own.
    Private,
    /// It is refused: the guest sees the image, and no more.
    Shared,
}

/// An image that RAM lies over.
#[derive(Clone, Debug)]
pub(crate) struct Over {
    pub(crate) image: Arc<Image>,
    /// The image's page at the region's start: the first of a block.
    pub(crate) first: u64,
    pub(crate) sharing: Sharing,
}

/// A run of guest frames that is RAM.
#[derive(Clone, Debug)]
pub(crate) struct RamRegion {
    /// The guest frames; starts at a block.
    pub(crate) range: GfnRange,
    /// The block of the pool that its first block prefers: blocks that lie in order cost the window one
    /// mapping together.
    pub(crate) origin: BlockNo,
    /// What it holds before the guest writes to it; without one it is zeroes.
    pub(crate) over: Option<Over>,
}

/// What one fault fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultPolicy {
    /// The page that was touched, or the whole block or GiB around it where it is untouched.
    pub pages: PageSize,
}

/// What becomes of an access to a page that is marked missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was asked for: who waits goes on when it is placed.
    Asked,
    /// It will never come: the access fails.
    Lost,
}

/// Asks for a page that is marked missing.
pub(crate) struct Pager(pub(crate) Box<dyn Fn(Gpa) -> Answer + Send + Sync>);

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pager")
    }
}

/// How often what happened. Statistics; nothing is ordered by them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Violations that filled a page, a block, a GiB.
    pub(crate) filled: [AtomicU64; 3],
    /// Violations on what was there already: another vCPU was faster, or the window had lost it.
    pub(crate) present: AtomicU64,
    /// Violations that ended in an error.
    pub(crate) refused: AtomicU64,
    /// Pages filled before anyone touched them: boot images, and the rest of a block.
    pub(crate) prefilled: AtomicU64,
    /// Pages that had to be taken from outside of their reserved block.
    pub(crate) scattered: AtomicU64,
    /// Pages that were copied because others use them too: a store's, a device's.
    pub(crate) unshared: AtomicU64,
    /// Violations on pages that are still elsewhere, and were asked for.
    pub(crate) asked: AtomicU64,
    /// Pages that were placed.
    pub(crate) placed: AtomicU64,
    /// Image pages that were mapped because one beside them was read.
    pub(crate) image_around: AtomicU64,
    /// Pages that the guest gave back.
    pub(crate) given_back: AtomicU64,
    /// Pages of them that it took back without touching them.
    pub(crate) taken_back: AtomicU64,
    /// Bytes that went to the host for it.
    pub(crate) returned_bytes: AtomicU64,
    /// Times that it could not give back what it meant to.
    pub(crate) give_back_refused: AtomicU64,
}

/// What is counted of pins, by thread: see [`Tally`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PinCount {
    /// Ranges that were pinned.
    Ranges,
    /// Pins that were taken back, because the table had changed.
    Changed,
    /// Pages that were waited for, because a collapse had their table.
    Frozen,
    /// Pages that were faulted in, or refused.
    Faults,
    /// Pages that were pinned under their table's lock.
    Locked,
    /// Pages that others used too, and that were given a copy first.
    Shared,
}

/// How many kinds there are.
pub(crate) const PIN_COUNTS: usize = 6;

/// The right to fill a block or a GiB: whoever means to take a whole run of frames for it asks here first.
/// Without it two faults on one block would both take a run, and the second might find the pool
/// exhausted while the first, about to lose, still holds what it needs. (Linux has the same table for
/// the same reason: `hugetlb_fault_mutex_table`.) Taken before any table's lock.
#[derive(Debug)]
pub(crate) struct FillLocks(Box<[Lock<()>]>);

/// Few enough to be small, enough that eight vCPUs in different blocks seldom meet.
const FILL_LOCKS: usize = if cfg!(loom) { 1 } else { 64 };

impl FillLocks {
    pub(crate) fn new() -> FillLocks {
        FillLocks((0..FILL_LOCKS).map(|_| Lock::new(Rank::Filling, ())).collect())
    }

    /// Takes the right for the run of `size` around `gfn`.
    pub(crate) fn lock(&self, gfn: Gfn, size: PageSize) -> Held<'_, ()> {
        let run = gfn.as_u64() / size.frames();
        self.0[run as usize % FILL_LOCKS].lock()
    }
}

/// One guest's memory.
#[derive(Debug)]
pub(crate) struct AddressSpace<P: Protocol> {
    pub(crate) ram: Vec<RamRegion>,
    pub(crate) table: Table<P>,
    pub(crate) mirror: Box<dyn Mirror>,
    pub(crate) pool: Apart<Arc<Pool>>,
    pub(crate) policy: FaultPolicy,
    pub(crate) counters: Counters,
    pub(crate) pin_counts: Apart<Tally<PIN_COUNTS>>,
    pub(crate) fill_locks: FillLocks,
    /// Pages that a device wrote before they were merged: the note was their frame's, which is gone or others' too.
    pub(crate) dirty_merged: Lock<BTreeSet<Gfn>>,
    /// Pages that read otherwise though nobody wrote to them: those that were taken away or given back, while somebody wants
    /// to know.
    pub(crate) lost: Lock<Option<Notes>>,
    /// Asked for pages that are still elsewhere; without it, touching one stops the guest.
    pub(crate) pager: Option<Pager>,
    /// Who waits for them, beside vCPUs.
    pub(crate) waits: Shared<Waits>,
}

impl<P: Protocol> AddressSpace<P> {
    /// Memory of `ram`, untouched, its frames from `pool`, shown by `mirror`.
    pub(crate) fn new(
        ram: Vec<RamRegion>,
        pool: Arc<Pool>,
        mirror: Box<dyn Mirror>,
        policy: FaultPolicy,
        pager: Option<Pager>,
    ) -> AddressSpace<P> {
        let ranges: Vec<GfnRange> = ram.iter().map(|region| region.range).collect();
        AddressSpace {
            ram,
            table: Table::new(&ranges),
            mirror,
            pool: Apart::new(pool),
            policy,
            counters: Counters::default(),
            pin_counts: Apart::new(Tally::new()),
            fill_locks: FillLocks::new(),
            dirty_merged: Lock::new(Rank::Last, BTreeSet::new()),
            lost: Lock::new(Rank::Last, None),
            pager,
            waits: Waits::new(),
        }
    }

    /// The RAM region that holds `gfn`.
    pub(crate) fn region(&self, gfn: Gfn) -> Option<&RamRegion> {
        self.ram.iter().find(|region| region.range.contains(gfn))
    }

    /// The pages of `range` go, and with them the notes of what devices wrote before they were merged.
    pub(crate) fn forget_merged(&self, range: GfnRange) {
        let mut noted = self.dirty_merged.lock();
        while let Some(&gfn) = noted.range(range.start()..range.end()).next() {
            noted.remove(&gfn);
        }
    }

    /// The pages of `range` went.
    pub(crate) fn note_lost(&self, range: GfnRange) {
        // In the models nobody asks, and a lock is one more step.
        if cfg!(not(loom))
            && let Some(lost) = &mut *self.lost.lock()
        {
            lost.note(range);
        }
    }

    /// How many pages of RAM there are.
    pub(crate) fn ram_frames(&self) -> u64 {
        self.ram.iter().map(|region| region.range.frames()).sum()
    }

    /// V2 of `wait-vs-arrival`: pages of `range` are missing no more.
    pub(crate) fn arrived(&self, range: GfnRange) {
        // Without a pager nobody waits: a missing page stops the guest.
        if self.pager.is_some() {
            self.waits.arrived(range);
        }
    }

    /// Whether `gfn` shows an image for good: what is mapped there is never written, and never replaced.
    pub(crate) fn shares_image(&self, gfn: Gfn) -> bool {
        let over = self.region(gfn).and_then(|region| region.over.as_ref());
        over.is_some_and(|over| over.sharing == Sharing::Shared)
    }

    /// Whether all of `range` is RAM.
    pub(crate) fn is_ram(&self, range: GfnRange) -> bool {
        self.ram.iter().any(|region| region.range.covers(range))
    }
}

/// A range that cuts through a page of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("guest-physical {range} cuts through a page: this pool is mapped in pages of {granule}")]
pub struct CutsPage {
    /// The range.
    pub range: GfnRange,
    /// The pool's page.
    pub granule: PageSize,
}

impl<P: Protocol> AddressSpace<P> {
    /// Whether the window can tell the pages of `range` from its neighbours.
    ///
    /// # Errors
    /// [`CutsPage`].
    pub(crate) fn check_granule(&self, range: GfnRange) -> Result<(), CutsPage> {
        let granule = self.pool.granule();
        let aligned = |frame: u64| frame.is_multiple_of(granule.frames());
        let whole = aligned(range.start().as_u64()) && aligned(range.frames());
        if whole { Ok(()) } else { Err(CutsPage { range, granule }) }
    }
}

impl RamRegion {
    /// The frame where the page at `gfn` would lie if the whole region lay in order; the pool has
    /// `pool_frames`.
    pub(crate) fn preferred_frame(&self, gfn: Gfn, pool_frames: u64) -> FrameNo {
        let linear =
            self.origin.first().index() as u64 + (gfn.as_u64() - self.range.start().as_u64());
        FrameNo::new((linear % pool_frames) as u32)
    }

    /// Where the window shows the block at `gfn` before anything of it is mapped: where most of it is going to lie.
    pub(crate) fn shown_block(&self, gfn: Gfn, pool_frames: u64) -> BlockNo {
        let home = self.over.as_ref().and_then(|over| over.image.home(over.page(self, gfn)));
        home.unwrap_or_else(|| self.preferred_frame(gfn, pool_frames).block())
    }
}

impl Over {
    /// What the guest may do with the image's own pages.
    pub(crate) fn rights(&self) -> Prot {
        match self.sharing {
            Sharing::Private => Prot::RAM.shared(),
            Sharing::Shared => Prot::Rx,
        }
    }

    /// The image's page at `gfn` of `region`.
    pub(crate) fn page(&self, region: &RamRegion, gfn: Gfn) -> u64 {
        self.first + (gfn.as_u64() - region.range.start().as_u64())
    }
}

/// Adds to a statistic.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
