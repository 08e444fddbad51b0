//! The face: a pool, the images on it, and guests that come and go.

mod ahead;
mod arrivals;
mod config;
mod expected;
mod guest;
mod lent;
mod pinner;
mod reclaimer;

use std::path::Path;
use std::sync::{Arc as Shared, OnceLock, Weak};

use crate::addr::{BlockNo, Gfn, Gpa, PageSize};
use crate::audit::{AuditError, Holdings, audit, check_kept, check_shared, leaked};
use crate::background::{Background, Workplace};
use crate::dedup::{self, DedupConfig, DedupPolicy, DedupStats, Scanner};
use crate::fault::{self, FaultError, Filled};
use crate::image::{Image, ImageError, Layers};
use crate::mirrors::uffd::{FaultThreads, Uffd};
use crate::place::Parcel;
use crate::pool::{BackingChoice, BackingError, Exhausted, Pool, PoolUsage};
use crate::prot::Access;
use crate::protocol::{Protocol, Sound};
use crate::share::{self, MergeError};
use crate::space::{AddressSpace, Over, Pager, RamRegion};
use crate::sync::{Arc, Lock, Rank};

use expected::Expected;

pub use ahead::Backed;
pub use config::{GuestConfig, GuestError, ImageRam, WriteError};
pub use guest::Guest;
pub use lent::{Lent, LentPiece};
pub use pinner::Pinner;
pub use reclaimer::Reclaimer;

/// The guest memory service of a process.
pub type GuestMm = Service<Sound>;

/// A pool and the guests on it.
#[derive(Debug)]
pub struct Service<P: Protocol> {
    pool: Arc<Pool>,
    guests: Lock<Guests<P>>,
    /// The thread that scans, if there is one. It goes before what it works on.
    dedup: Lock<Option<Background<Scanner<P>>>>,
    scanner: Shared<Workplace<Scanner<P>>>,
}

#[derive(Debug)]
struct Guests<P: Protocol> {
    /// Every guest that is still there, for the audit of the pool.
    spaces: Vec<Weak<AddressSpace<P>>>,
    /// Every image that is.
    images: Vec<Weak<Image>>,
    /// The block that the next guest's RAM prefers to start at.
    next_origin: u64,
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
        let guests = Guests { spaces: Vec::new(), images: Vec::new(), next_origin: 0 };
        let scanner = Shared::new(Workplace::new(Scanner::new(&pool)));
        let guests = Lock::new(Rank::Guests, guests);
        Ok(Service { pool, guests, dedup: Lock::new(Rank::Scanner, None), scanner })
    }

    /// How much of the pool is what.
    pub fn usage(&self) -> PoolUsage {
        self.pool.usage()
    }

    /// One line: what the pool lies on, and why.
    pub fn describe_pool(&self) -> String {
        self.pool.describe()
    }

    /// The image in the file at `path`, for RAM to lie over. It lives until this and the last guest over it are gone.
    ///
    /// # Errors
    /// [`ImageError`]: the file is no image, or the pool cannot map it.
    pub fn open_image(&self, path: &Path) -> Result<Arc<Image>, ImageError> {
        Ok(self.keep(Image::open(&self.pool, path)?))
    }

    /// The same for an image of several files, or one whose pages are checked as they are read.
    ///
    /// # Errors
    /// [`ImageError`], likewise.
    pub fn open_layers(&self, layers: Layers) -> Result<Arc<Image>, ImageError> {
        Ok(self.keep(Image::of_layers(&self.pool, layers)?))
    }

    fn keep(&self, image: Image) -> Arc<Image> {
        let image = Arc::new(image);
        let images = &mut self.guests.lock().images;
        images.retain(|image| image.strong_count() > 0);
        images.push(Arc::downgrade(&image));
        image
    }

    /// Makes the small pages at `one` and at `other`, of guests of this service, one frame that nobody writes any more,
    /// if they have the same bytes. The next store to either is given a copy.
    ///
    /// # Errors
    /// [`MergeError`]: both are as they were, but that the next store to `one` may be given a copy in vain.
    pub fn merge(&self, one: (&Guest<P>, Gfn), other: (&Guest<P>, Gfn)) -> Result<(), MergeError> {
        let ours = |guest: &Guest<P>| Arc::ptr_eq(&guest.space().pool, &self.pool);
        if !ours(one.0) || !ours(other.0) {
            return Err(MergeError::NotOwn);
        }
        share::merge((one.0.space(), one.1), (other.0.space(), other.1))
    }

    /// Looks `rounds` times at the pages of all guests, and makes those of the same bytes one frame. A page is merged when
    /// it is the same for the second time: the first round after a page was filled takes notes only. What was done so
    /// far, by this and by the thread.
    pub fn dedup(&self, policy: DedupPolicy, rounds: u32) -> DedupStats {
        dedup::scan(&self.scanner, policy, rounds)
    }

    /// As [`Service::dedup`], once.
    pub fn dedup_once(&self, policy: DedupPolicy) -> DedupStats {
        self.dedup(policy, 1)
    }

    /// Starts a thread that does so round by round, until the service goes or [`Service::stop_dedup`]; one that was
    /// started before ends.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start_dedup(&self, config: DedupConfig) -> std::io::Result<()> {
        let mut thread = self.dedup.lock();
        drop(thread.take());
        *thread = Some(dedup::start(&self.scanner, config)?);
        Ok(())
    }

    /// Ends that thread, and gives back what only the scanner keeps. What is merged stays so.
    pub fn stop_dedup(&self) {
        drop(self.dedup.lock().take());
        self.scanner.visit().forget();
    }

    /// Whether that thread runs, or rests.
    pub fn has_dedup(&self) -> bool {
        self.dedup.lock().is_some()
    }

    /// Lets that thread rest. Pages that it is at work on are done when this returns.
    pub fn pause_dedup(&self) {
        self.scanner.pause();
    }

    /// Lets that thread go on.
    pub fn resume_dedup(&self) {
        self.scanner.resume();
    }

    /// What was found to be the same so far, and what that saves now.
    pub fn dedup_stats(&self) -> DedupStats {
        let scanner = self.scanner.visit();
        DedupStats { paused: scanner.is_paused(), ..scanner.stats() }
    }

    /// A frame to fill and then place.
    ///
    /// # Errors
    /// None is left.
    pub fn parcel(&self) -> Result<Parcel, Exhausted> {
        Parcel::new(&self.pool)
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
        let ram = self.lay_out(&config)?;
        let mirror = Arc::new(Uffd::new(Arc::clone(&self.pool), &ram)?);
        let space = Shared::new(AddressSpace::new(
            ram,
            Arc::clone(&self.pool),
            Box::new(Arc::clone(&mirror)),
            config.policy,
            config.on_missing.map(Pager),
        ));
        self.guests.lock().spaces.push(Shared::downgrade(&space));
        let on_stop = Shared::new(config.on_stop);
        let on_failure = {
            let on_stop = Shared::clone(&on_stop);
            move || on_stop(&FaultError::Failed)
        };
        let expected: Shared<OnceLock<Expected>> = Shared::default();
        let handler: Arc<_> = {
            let (space, mirror, on_stop) = (Shared::clone(&space), Arc::clone(&mirror), on_stop);
            let expected = Shared::clone(&expected);
            Arc::new(move |gpa: Gpa, access: Access| {
                expected.get().into_iter().for_each(|it| it.touched(&space, gpa.gfn()));
                match fault::fault(&space, gpa, access) {
                    Ok(Filled::Fresh(PageSize::Size2M)) => fault::prepare_next(&space, gpa),
                    Ok(_) => {}
                    Err(error) => {
                        on_stop(&error);
                        mirror.abandon(gpa);
                    }
                }
            })
        };
        let handler: Arc<dyn Fn(Gpa, Access) + Send + Sync> = handler;
        let threads =
            FaultThreads::start(&mirror, config.fault_threads.max(1), &handler, on_failure)
                .map_err(GuestError::Thread)?;
        self.scanner.visit().join(&space);
        Ok(Guest::new(space, mirror, threads, Shared::clone(&self.scanner), expected))
    }

    /// Gives each range the place in the pool that it prefers: behind one another, round and round.
    fn lay_out(&self, config: &GuestConfig) -> Result<Vec<RamRegion>, GuestError> {
        let block = PageSize::Size2M.frames();
        let (kind, granule) = (self.pool.kind(), self.pool.granule());
        let plain = config.ram.iter().map(|&range| (range, None));
        let over = config.over.iter().map(|over| (over.range, Some(over)));
        let guests = &mut *self.guests.lock();
        let mut regions: Vec<RamRegion> = Vec::new();
        for (range, over) in plain.chain(over) {
            let other = regions.iter().find(|other| other.range.intersection(range).is_some());
            if let Some(other) = other {
                return Err(GuestError::Overlap(other.range, range));
            }
            if range.start().offset_in(block) != 0 {
                return Err(GuestError::Unaligned(range));
            }
            if !range.frames().is_multiple_of(granule.frames()) {
                return Err(GuestError::Ragged { range, kind, granule });
            }
            let over = over.map(|over| self.check_image(over)).transpose()?;
            let blocks = self.pool.nr_frames() / block;
            let origin = BlockNo::new((guests.next_origin % blocks) as u32);
            guests.next_origin += range.frames().div_ceil(block);
            regions.push(RamRegion { range, origin, over });
        }
        Ok(regions)
    }

    fn check_image(&self, over: &ImageRam) -> Result<Over, GuestError> {
        let ImageRam { range, first, sharing, ref image } = *over;
        let path = || image.path().to_owned();
        if !image.is_of(&self.pool) {
            return Err(GuestError::OtherService { image: path() });
        }
        if !first.is_multiple_of(PageSize::Size2M.frames()) {
            return Err(GuestError::UnalignedImage { range, image: path(), first });
        }
        let has = image.nr_pages();
        if first.checked_add(range.frames()).is_none_or(|end| end > has) {
            return Err(GuestError::PastImage { range, image: path(), first, has });
        }
        Ok(Over { image: Arc::clone(image), first, sharing })
    }

    /// Checks the books of every guest, and that the pool has no frame in use that none of them maps.
    /// Only at rest: no vCPU runs and no operation is under way but the scanner's, which waits.
    ///
    /// # Errors
    /// The first wrong book.
    pub fn audit(&self) -> Result<(), AuditError> {
        let guests = &mut *self.guests.lock();
        guests.spaces.retain(|space| space.strong_count() > 0);
        let scanner = self.scanner.visit();
        let mut holdings = Holdings::default();
        for space in guests.spaces.iter().filter_map(Weak::upgrade) {
            holdings.merge(audit(&space)?);
        }
        let kept = scanner.kept();
        check_shared(&self.pool, &holdings, &kept)?;
        let kept = check_kept(&self.pool, &holdings, &kept)?;
        let images: Vec<_> = guests.images.iter().filter_map(Weak::upgrade).collect();
        let loaded: u64 = images.iter().map(|image| image.nr_loaded()).sum();
        let usage = self.pool.usage();
        if guests.spaces.is_empty() && images.is_empty() && usage.reserved > 0 {
            return Err(AuditError::LeftReserved { frames: usage.reserved });
        }
        if guests.spaces.is_empty() && usage.orphans > 0 {
            return Err(AuditError::LeftOrphans { frames: usage.orphans });
        }
        if guests.spaces.is_empty() && self.pool.frames().nr_pins() > 0 {
            return Err(AuditError::LeakedPins { pins: self.pool.frames().nr_pins() });
        }
        leaked(usage.used - usage.orphans, holdings.frames() + loaded + kept)
    }
}
