//! The face: a pool, and guests that come and go.

use std::sync::Arc as Shared;

use crate::addr::{BlockNo, Gfn, GfnRange, Gpa, GpaRange, Hva, PageSize};
use crate::audit::{AuditError, audit, audit_torn_down, leaked};
use crate::collapse::{
    self, CollapseError, CollapsePolicy, CollapseReport, Collapser, CollapserConfig, CollapserStats,
};
use crate::copy::{self, NotMapped};
use crate::dirty;
use crate::entry::Marker;
use crate::fault::{self, FaultError, Filled};
use crate::map::{MemoryMap, map};
use crate::mark::{self, MarkError};
use crate::mirrors::uffd::{FaultThreads, Uffd, WindowError};
use crate::pin::{self, Patience, PinBatch, PinError, Pinned};
use crate::pool::{BackingChoice, BackingError, Pool, PoolUsage};
use crate::prot::{Access, Prot};
use crate::protect::{self, ProtectError};
use crate::protocol::{Protocol, Sound};
use crate::space::{AddressSpace, Counters, FaultPolicy, FillLocks, RamRegion};
use crate::split::{self, SplitError};
use crate::stats::Stats;
use crate::sync::{Apart, Arc, Lock};
use crate::table::Table;
use crate::tally::Tally;
use crate::unmap::{self, UnmapError};

/// The guest memory service of a process.
pub type GuestMm = Service<Sound>;

/// A pool and the guests on it.
#[derive(Debug)]
pub struct Service<P: Protocol> {
    pool: Arc<Pool>,
    guests: Lock<Guests<P>>,
}

#[derive(Debug)]
struct Guests<P: Protocol> {
    /// Every guest that is still there, for the audit of the pool.
    spaces: Vec<std::sync::Weak<AddressSpace<P>>>,
    /// The block that the next guest's RAM prefers to start at.
    next_origin: u64,
}

/// What a guest is made of.
pub struct GuestConfig {
    /// Its RAM: each range starts at a block.
    pub ram: Vec<GfnRange>,
    /// What one fault fills.
    pub policy: FaultPolicy,
    /// Threads that serve its faults.
    pub fault_threads: usize,
    /// Called, on a fault thread, for a violation that cannot be served. When it returns, the vCPU that
    /// made the access must have been sent out of the guest, so that it leaves `KVM_RUN` as soon as the
    /// access is let go, which it then is; the others have to follow soon.
    pub on_stop: Box<dyn Fn(&FaultError) + Send + Sync>,
}

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A range of RAM starts in the middle of a block.
    #[error("RAM at {0} does not start at a multiple of 2 MiB")]
    Unaligned(GfnRange),
    /// Two ranges of RAM overlap.
    #[error("RAM at {0} and at {1} overlaps")]
    Overlap(GfnRange, GfnRange),
    /// A range of RAM ends in the middle of a page of the pool.
    #[error("RAM at {range} does not end at a multiple of {granule}, the page of a {kind} pool")]
    Ragged {
        /// The range.
        range: GfnRange,
        /// What the pool lies on.
        kind: crate::pool::BackingKind,
        /// Its smallest page.
        granule: PageSize,
    },
    /// Pages of this pool cannot be mapped one by one.
    #[error("a {kind} pool is mapped in pages of {granule}, so faults cannot be served in {pages}")]
    Granule {
        /// What the pool lies on.
        kind: crate::pool::BackingKind,
        /// Its smallest page.
        granule: PageSize,
        /// What was asked for.
        pages: PageSize,
    },
    /// There is no window.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// There is no thread to serve it.
    #[error("cannot start a fault thread: {0}")]
    Thread(std::io::Error),
}

impl<P: Protocol> Service<P> {
    /// A service with a pool of `bytes`, a multiple of 2 MiB, for guests whose faults are mostly served
    /// in `pages`.
    ///
    /// # Errors
    /// The memory cannot be had as asked.
    pub fn new(
        choice: BackingChoice,
        bytes: u64,
        pages: PageSize,
    ) -> Result<Service<P>, BackingError> {
        crate::table::epoch::prepare();
        let pool = Arc::new(Pool::new(choice, bytes, pages)?);
        Ok(Service { pool, guests: Lock::new(Guests { spaces: Vec::new(), next_origin: 0 }) })
    }

    /// How much of the pool is what.
    pub fn usage(&self) -> PoolUsage {
        self.pool.usage()
    }

    /// One line: what the pool lies on, and why.
    pub fn describe_pool(&self) -> String {
        self.pool.describe()
    }

    /// A guest, all of its RAM untouched, its faults served from now on.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn add_guest(&self, config: GuestConfig) -> Result<Guest<P>, GuestError> {
        let granule = self.pool.granule();
        if config.policy.pages < granule {
            let (kind, pages) = (self.pool.kind(), config.policy.pages);
            return Err(GuestError::Granule { kind, granule, pages });
        }
        let ram = self.place(&config.ram)?;
        let mirror = Arc::new(Uffd::new(Arc::clone(&self.pool), &ram)?);
        let space = Shared::new(AddressSpace {
            table: Table::new(&config.ram),
            ram,
            mirror: Box::new(Arc::clone(&mirror)),
            pool: Apart::new(Arc::clone(&self.pool)),
            policy: config.policy,
            counters: Counters::default(),
            pin_counts: Apart::new(Tally::new()),
            fill_locks: FillLocks::new(),
        });
        self.guests.lock().spaces.push(Shared::downgrade(&space));
        let on_stop = Shared::new(config.on_stop);
        let on_failure = {
            let on_stop = Shared::clone(&on_stop);
            move || on_stop(&FaultError::Failed)
        };
        let handler: Arc<_> = {
            let (space, mirror, on_stop) = (Shared::clone(&space), Arc::clone(&mirror), on_stop);
            Arc::new(move |gpa: Gpa, access: Access| match fault::fault(&space, gpa, access) {
                Ok(Filled::Fresh(PageSize::Size2M)) => fault::prepare_next(&space, gpa),
                Ok(_) => {}
                Err(error) => {
                    on_stop(&error);
                    mirror.abandon(gpa);
                }
            })
        };
        let handler: Arc<dyn Fn(Gpa, Access) + Send + Sync> = handler;
        let threads =
            FaultThreads::start(&mirror, config.fault_threads.max(1), &handler, on_failure)
                .map_err(GuestError::Thread)?;
        Ok(Guest { space, mirror, threads: Some(threads), collapser: None })
    }

    /// Gives each range the place in the pool that it prefers: behind one another, round and round.
    fn place(&self, ram: &[GfnRange]) -> Result<Vec<RamRegion>, GuestError> {
        let block = PageSize::Size2M.frames();
        for (index, &range) in ram.iter().enumerate() {
            let other = ram[..index].iter().find(|other| other.intersection(range).is_some());
            if let Some(&other) = other {
                return Err(GuestError::Overlap(other, range));
            }
        }
        let guests = &mut *self.guests.lock();
        ram.iter()
            .map(|&range| {
                if range.start().offset_in(block) != 0 {
                    return Err(GuestError::Unaligned(range));
                }
                let kind = self.pool.kind();
                if !range.frames().is_multiple_of(self.pool.granule().frames()) {
                    return Err(GuestError::Ragged { range, kind, granule: self.pool.granule() });
                }
                let blocks = self.pool.nr_frames() / block;
                let origin = BlockNo::new((guests.next_origin % blocks) as u32);
                guests.next_origin += range.frames().div_ceil(block);
                Ok(RamRegion { range, origin })
            })
            .collect()
    }

    /// Checks the books of every guest, and that the pool has no frame in use that none of them maps.
    /// Only at rest: no vCPU runs and no operation is under way.
    ///
    /// # Errors
    /// The first wrong book.
    pub fn audit(&self) -> Result<(), AuditError> {
        let guests = &mut *self.guests.lock();
        guests.spaces.retain(|space| space.strong_count() > 0);
        let mut mapped = 0;
        for space in guests.spaces.iter().filter_map(std::sync::Weak::upgrade) {
            mapped += audit(&space)?;
        }
        let usage = self.pool.usage();
        if guests.spaces.is_empty() && usage.reserved > 0 {
            return Err(AuditError::LeftReserved { frames: usage.reserved });
        }
        if guests.spaces.is_empty() && usage.orphans > 0 {
            return Err(AuditError::LeftOrphans { frames: usage.orphans });
        }
        if guests.spaces.is_empty() && self.pool.frames().nr_pins() > 0 {
            return Err(AuditError::LeakedPins { pins: self.pool.frames().nr_pins() });
        }
        leaked(usage.used - usage.orphans, mapped)
    }
}

/// One guest's memory. Dropping it takes the guest down; [`Guest::close`] also says whether the books
/// were right.
#[derive(Debug)]
pub struct Guest<P: Protocol = Sound> {
    space: Shared<AddressSpace<P>>,
    mirror: Arc<Uffd>,
    threads: Option<FaultThreads>,
    collapser: Option<Collapser>,
}

impl<P: Protocol> Guest<P> {
    /// Where the RAM is in this process, for KVM's memory slots. Nothing else may use these addresses,
    /// and they end with the guest: close the VM first.
    pub fn windows(&self) -> impl Iterator<Item = (GfnRange, Hva)> {
        self.mirror.windows()
    }

    /// Serves a violation as a fault thread would.
    ///
    /// # Errors
    /// [`FaultError`]: the access cannot be made.
    pub fn fault(&self, gpa: Gpa, access: Access) -> Result<Filled, FaultError> {
        fault::fault(&self.space, gpa, access)
    }

    /// Fills every absent page of `range`, which is RAM, and where the policy is to fill blocks the rest of its
    /// blocks too; how many pages were filled.
    ///
    /// # Errors
    /// [`FaultError`]; pages before the one that it names are filled.
    pub fn populate(&self, range: GfnRange) -> Result<u64, FaultError> {
        fault::populate(&self.space, range)
    }

    /// Copies bytes into populated memory.
    ///
    /// # Errors
    /// [`NotMapped`]: part of it is not populated.
    pub fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), NotMapped> {
        copy::write(&self.space, gpa, from)
    }

    /// Copies bytes out of populated memory.
    ///
    /// # Errors
    /// [`NotMapped`]: part of it is not populated.
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), NotMapped> {
        copy::read(&self.space, gpa, into)
    }

    /// Pins `range` for a device. Pages that are not there are faulted in.
    ///
    /// # Errors
    /// [`PinError`]: nothing is pinned.
    #[inline(always)]
    pub fn pin(&self, range: GpaRange, access: Access) -> Result<Pinned<'_>, PinError> {
        pin::pin(&self.space, range, access, None)
    }

    /// As [`Guest::pin`], waiting for pages no longer than `patience` lasts.
    ///
    /// # Errors
    /// [`PinError`]: nothing is pinned.
    pub fn pin_within(
        &self,
        range: GpaRange,
        access: Access,
        patience: &Patience,
    ) -> Result<Pinned<'_>, PinError> {
        pin::pin(&self.space, range, access, Some(patience))
    }

    /// A batch to pin many ranges with, empty.
    pub fn pin_batch(&self) -> PinBatch<'_, P> {
        PinBatch::new(&self.space)
    }

    /// Its memory, for the faces beside this one.
    pub(crate) fn space(&self) -> &AddressSpace<P> {
        &self.space
    }

    /// Takes `range` away; its next touch reads zeroes. How many frames it had: they are back in the pool, but
    /// for those that a device has pinned, which follow when it lets go.
    ///
    /// # Errors
    /// [`UnmapError`].
    pub fn unmap(&self, range: GfnRange) -> Result<u64, UnmapError> {
        unmap::unmap(&self.space, range)
    }

    /// Gives what is mapped in `range` other rights.
    ///
    /// # Errors
    /// [`ProtectError`].
    pub fn protect(&self, range: GfnRange, prot: Prot) -> Result<(), ProtectError> {
        protect::protect(&self.space, range, prot)
    }

    /// Splits leaves of `range` that are larger than `size`; how many.
    ///
    /// # Errors
    /// [`SplitError`].
    pub fn split(&self, range: GfnRange, size: PageSize) -> Result<u64, SplitError> {
        split::split(&self.space, range, size)
    }

    /// Marks `range`, which is untouched.
    ///
    /// # Errors
    /// [`MarkError`].
    pub fn mark(&self, range: GfnRange, marker: Marker) -> Result<(), MarkError> {
        mark::mark(&self.space, range, marker)
    }

    /// Maps every block that `range` touches by one huge leaf, as far as `policy` allows.
    ///
    /// # Errors
    /// [`CollapseError`]; blocks before the one that failed are done.
    pub fn collapse(
        &self,
        range: GfnRange,
        policy: CollapsePolicy,
    ) -> Result<CollapseReport, CollapseError> {
        collapse::collapse(&self.space, range, policy)
    }

    /// Starts a thread that looks for blocks to collapse, until the guest goes; one that was started before
    /// ends.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start_collapser(&mut self, config: CollapserConfig) -> std::io::Result<()> {
        self.collapser = None;
        self.collapser = Some(Collapser::start(&self.space, config)?);
        Ok(())
    }

    /// Lets that thread rest. A block that it is at work on is done when this returns.
    pub fn pause_collapser(&self) {
        self.collapser.iter().for_each(Collapser::pause);
    }

    /// Lets that thread go on.
    pub fn resume_collapser(&self) {
        self.collapser.iter().for_each(Collapser::resume);
    }

    /// What that thread did, if there is one.
    pub fn collapser_stats(&self) -> Option<CollapserStats> {
        self.collapser.as_ref().map(Collapser::stats)
    }

    /// Calls `see` for every page of `range` that a device has written since this was last asked. Pages
    /// that a device has pinned now are told again the next time.
    pub fn take_dirty(&self, range: GfnRange, see: impl FnMut(Gfn)) {
        dirty::take(&self.space, range, see);
    }

    /// Whether all of `range` is RAM.
    pub fn is_ram(&self, range: GfnRange) -> bool {
        self.space.is_ram(range)
    }

    /// What the service did so far.
    pub fn stats(&self) -> Stats {
        let messages = self.threads.as_ref().map(FaultThreads::stats).unwrap_or_default();
        let collapser = self.collapser_stats();
        Stats { collapser, ..Stats::of(&self.space, messages) }
    }

    /// What each block holds.
    pub fn memory_map(&self) -> MemoryMap {
        map(&self.space)
    }

    /// Checks the books. Only at rest.
    ///
    /// # Errors
    /// The first wrong book.
    pub fn audit(&self) -> Result<(), AuditError> {
        audit(&self.space).map(|_| ())
    }

    /// Takes the guest down: no fault is served any more, all memory goes back to the pool, and the
    /// books are checked. No vCPU may run.
    ///
    /// # Errors
    /// What is left, or wrong.
    pub fn close(mut self) -> Result<(), AuditError> {
        self.rest();
        let books = audit(&self.space);
        self.take_down()?;
        books.map(|_| ())
    }

    /// Serves no fault any more, and waits for those that are being served: a fault thread may still be
    /// filling the rest of a block when its vCPU has ended long ago. No vCPU may run.
    pub fn rest(&mut self) {
        self.collapser = None;
        if let Some(threads) = &mut self.threads {
            threads.stop();
        }
    }

    fn take_down(&mut self) -> Result<(), AuditError> {
        self.collapser = None;
        drop(self.threads.take());
        unmap::unmap_all(&self.space).map_err(|error| AuditError::Teardown(error.to_string()))?;
        audit_torn_down(&self.space)
    }
}

impl<P: Protocol> Drop for Guest<P> {
    fn drop(&mut self) {
        if self.threads.is_some()
            && let Err(error) = self.take_down()
            && !std::thread::panicking()
        {
            panic!("a guest's memory could not be taken down: {error}");
        }
    }
}
