//! What RAM can be private over: a template, a snapshot, a pmem file. An image is read-only, has frames of its own (its
//! "page cache"), and loads them from its file when they are first asked for.
//!
//! Each block of an image reserves a block of the pool, so that its pages fall in place and a guest can map all of
//! them by one leaf. The image keeps a frame from its loading to its own end, whoever maps it: a guest's leaf of an image
//! needs no reference, because the guest's region has one on the image.
//!
//! A page is loaded once, under the lock of its block; who finds it loaded takes no lock.

#[cfg(not(loom))]
mod file;
#[cfg(not(loom))]
mod order;
#[cfg(not(loom))]
mod source;
#[cfg(not(loom))]
mod sums;

use crate::addr::{BlockNo, FrameNo};
use crate::geometry::Level;
use crate::pool::{Exhausted, Pool, Reservation};
use crate::sync::{Arc, AtomicU64, Lock, Ordering, Rank, zeroed_words};

#[cfg(not(loom))]
pub use file::{ImageError, ReadError};
#[cfg(not(loom))]
pub use order::{Needed, Order};
#[cfg(not(loom))]
use source::Source;
#[cfg(not(loom))]
pub use source::{Layers, page_sum};
#[cfg(not(loom))]
pub use sums::Sums;

/// Pages of a block.
const BLOCK: u64 = Level::PD.entry_frames();

/// Why a page of an image is not there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LoadError {
    /// No frame is left for it.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// Its file did not give it.
    #[cfg(not(loom))]
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// An image.
#[derive(Debug)]
pub struct Image {
    pool: Arc<Pool>,
    pages: u64,
    /// The frame of each page, plus one; 0 is not loaded. Written under the block's lock. The host backs what is loaded alone.
    frames: Box<[AtomicU64]>,
    blocks: Box<[ImageBlock]>,
    /// Frames that it has.
    nr_loaded: AtomicU64,
    /// Where its pages are noted in the order in which they are loaded.
    #[cfg(not(loom))]
    order: std::sync::OnceLock<Order>,
    #[cfg(not(loom))]
    source: Source,
}

#[derive(Debug)]
struct ImageBlock {
    /// Where its pages prefer to lie.
    reservation: Option<Reservation>,
    /// Pages that lie there.
    in_place: AtomicU64,
    loading: Lock<()>,
}

impl Image {
    /// An image of `pages`, none of them loaded; its blocks lie behind one another where the pool has room, which
    /// costs a window one mapping for all of them.
    fn new(pool: &Arc<Pool>, pages: u64, #[cfg(not(loom))] source: Source) -> Image {
        let mut hint = BlockNo::new(0);
        let mut reserve = || {
            let reservation = pool.reserve(hint);
            if let Some(own) = reservation {
                hint = BlockNo::new(own.block().index() as u32 + 1);
            }
            ImageBlock {
                reservation,
                in_place: AtomicU64::new(0),
                loading: Lock::new(Rank::Loading, ()),
            }
        };
        Image {
            pool: Arc::clone(pool),
            pages,
            frames: zeroed_words(pages as usize),
            blocks: (0..pages.div_ceil(BLOCK)).map(|_| reserve()).collect(),
            nr_loaded: AtomicU64::new(0),
            #[cfg(not(loom))]
            order: std::sync::OnceLock::new(),
            #[cfg(not(loom))]
            source,
        }
    }

    /// An image of `pages`, loaded, whose words are those that `word` says.
    #[cfg(loom)]
    pub(crate) fn model(pool: &Arc<Pool>, pages: u64, word: impl Fn(u64) -> u64) -> Image {
        let image = Image::new(pool, pages);
        for page in 0..pages {
            let frame = image.page(page).expect("the pool has room for the image");
            pool.memory().write(frame, word(page));
        }
        image
    }

    /// Whether its frames are those of `pool`.
    #[cfg(not(loom))]
    pub(crate) fn is_of(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// How many pages it has.
    pub fn nr_pages(&self) -> u64 {
        self.pages
    }

    /// How many of them are loaded.
    pub fn nr_loaded(&self) -> u64 {
        self.nr_loaded.load(Ordering::Relaxed)
    }

    /// Notes from now on in which order pages are loaded: at what is given back, which outlives the image.
    #[cfg(not(loom))]
    pub fn note_order(&self) -> Order {
        self.order.get_or_init(Order::default).clone()
    }

    /// Loads `pages` before anybody asks for them, block by block: those of a block in one read where they lie in order. What is
    /// past the end is passed over.
    ///
    /// # Errors
    /// [`LoadError`]: pages before the one that failed are loaded.
    pub fn prefetch(&self, pages: &[u32]) -> Result<(), LoadError> {
        let mut wanted: Vec<u64> = pages.iter().map(|&page| page.into()).collect();
        wanted.retain(|&page| page < self.pages);
        wanted.sort_unstable();
        wanted.dedup();
        let mut left = &wanted[..];
        while let Some(&first) = left.first() {
            let of_block = left.partition_point(|page| page / BLOCK == first / BLOCK);
            let run = (first..).zip(&left[..of_block]).take_while(|(at, page)| at == *page).count();
            let block = &self.blocks[(first / BLOCK) as usize];
            let _loading = block.loading.lock();
            let mut next = first;
            while next < first + run as u64 {
                next += self.load_run(block, next, first + run as u64 - next)?;
            }
            left = &left[run..];
        }
        Ok(())
    }

    /// Has the system begin to read `pages` from `page` on, which are going to be asked for, and does not wait for them. What is
    /// loaded is not read again.
    #[cfg(not(loom))]
    pub(crate) fn will_need(&self, page: u64, pages: u64) {
        let range = page..self.pages.min(page + pages);
        if range.clone().any(|page| self.loaded(page).is_none()) {
            self.source.will_need(page, range.end - page);
        }
    }

    /// Copies pages from `page` on to `into`, as many as it has room for. They need not be loaded, and are not loaded by this.
    ///
    /// # Errors
    /// [`LoadError`]: they are not what was put there, or not to be had.
    ///
    /// # Panics
    /// If `into` is no number of whole pages, or reaches past the end.
    #[cfg(not(loom))]
    pub fn copy_out(&self, page: u64, into: &mut [u8]) -> Result<(), LoadError> {
        use crate::geometry::FRAME_BYTES;
        let pages = into.len() as u64 / FRAME_BYTES;
        assert!(into.len() as u64 == pages * FRAME_BYTES && page + pages <= self.pages);
        let frames: Option<Vec<FrameNo>> = (page..page + pages).map(|at| self.loaded(at)).collect();
        // What was checked once need not be read again.
        let Some(frames) = frames else { return Ok(self.source.read_into(page, into)?) };
        for (frame, bytes) in frames.into_iter().zip(into.chunks_mut(FRAME_BYTES as usize)) {
            self.pool.memory().read(frame, 0, bytes);
        }
        Ok(())
    }

    /// Reads `pages` from `page` on to as many frames from `first` on, which are the caller's alone. They are not loaded by this.
    #[cfg(not(loom))]
    pub(crate) fn read_to(&self, page: u64, first: FrameNo, pages: u64) -> Result<(), LoadError> {
        Ok(self.source.read(&self.pool, page, first, pages)?)
    }

    /// A frame with the bytes of `page` for a guest that stores to it, if that is the only one over this image, and `page` is not
    /// loaded: it is not loaded by this, and lies where it would be.
    #[cfg(not(loom))]
    pub(crate) fn give(&self, page: u64) -> Result<Option<FrameNo>, LoadError> {
        let frame = if self.source.alone { self.lend(page) } else { None };
        let Some(frame) = frame else { return Ok(None) };
        if let Err(error) = self.read_to(page, frame, 1) {
            self.pool.release(frame, 1);
            return Err(error);
        }
        if let Some(order) = self.order.get() {
            order.note(page, 1);
        }
        Ok(Some(frame))
    }

    /// The models' guests share theirs.
    #[cfg(loom)]
    pub(crate) fn give(&self, _page: u64) -> Result<Option<FrameNo>, LoadError> {
        Ok(None)
    }

    /// A guest has a copy of `page` now.
    pub(crate) fn note_store(&self, page: u64) {
        #[cfg(not(loom))]
        if let Some(order) = self.order.get() {
            order.note_store(page);
        }
        #[cfg(loom)]
        let _ = page;
    }

    /// The block of the pool in which the pages of the block around `page` lie, those that are in place.
    pub(crate) fn home(&self, page: u64) -> Option<BlockNo> {
        self.blocks[(page / BLOCK) as usize].reservation.map(Reservation::block)
    }

    /// The frame where `page` would be loaded, for a guest that needs a page of its own there and not this; its bytes are whatever they
    /// are. If the page is loaded after all, it lies elsewhere.
    pub(crate) fn lend(&self, page: u64) -> Option<FrameNo> {
        let own = self.blocks[(page / BLOCK) as usize].reservation?;
        self.loaded(page).is_none().then(|| self.pool.claim(own, page % BLOCK))?
    }

    /// The frame of `page`, if it is loaded.
    pub(crate) fn loaded(&self, page: u64) -> Option<FrameNo> {
        // Acquire, with the release in `load_run`: the bytes are there.
        let slot = self.frames[page as usize].load(Ordering::Acquire);
        slot.checked_sub(1).map(|frame| FrameNo::new(frame as u32))
    }

    /// The block in which all pages of the block around `page` lie in order, if they are all loaded and do.
    pub(crate) fn whole_block(&self, page: u64) -> Option<BlockNo> {
        let block = &self.blocks[(page / BLOCK) as usize];
        // Acquire, with the release in `load_run`.
        let whole = block.in_place.load(Ordering::Acquire) == BLOCK;
        block.reservation.filter(|_| whole).map(Reservation::block)
    }

    /// The frame of `page`, loaded now if it was not.
    pub(crate) fn page(&self, page: u64) -> Result<FrameNo, LoadError> {
        if let Some(frame) = self.loaded(page) {
            return Ok(frame);
        }
        let block = &self.blocks[(page / BLOCK) as usize];
        let _loading = block.loading.lock();
        self.load_run(block, page, 1)?;
        Ok(self.loaded(page).expect("it was loaded just now"))
    }

    /// The block in which all pages of the block around `page` lie, all of them loaded; none if they do not all fit
    /// there: part of it is past the image's end, or the pool was short of memory.
    pub(crate) fn load_block(&self, page: u64) -> Result<Option<BlockNo>, LoadError> {
        let first = page / BLOCK * BLOCK;
        let block = &self.blocks[(page / BLOCK) as usize];
        if first + BLOCK > self.pages || block.reservation.is_none() {
            return Ok(None);
        }
        if self.whole_block(page).is_none() {
            let _loading = block.loading.lock();
            let mut next = first;
            while next < first + BLOCK {
                next += self.load_run(block, next, first + BLOCK - next)?;
            }
        }
        Ok(self.whole_block(page))
    }

    /// Loads pages of `block`, which is locked, from `page` on: those that are not loaded yet, up to `want`, in one
    /// read if their frames lie in order. How many are loaded now.
    fn load_run(&self, block: &ImageBlock, page: u64, want: u64) -> Result<u64, LoadError> {
        if self.loaded(page).is_some() {
            return Ok(1);
        }
        let claim = |page: u64| {
            let wanted = self.loaded(page).is_none();
            block.reservation.filter(|_| wanted).and_then(|own| self.pool.claim(own, page % BLOCK))
        };
        let in_place = claim(page);
        let first = match in_place {
            Some(frame) => frame,
            None => self.pool.alloc()?,
        };
        let more =
            (page + 1..page + want).take_while(|&page| in_place.is_some() && claim(page).is_some());
        let pages = 1 + more.count() as u64;
        #[cfg(not(loom))]
        if let Err(error) = self.source.read(&self.pool, page, first, pages) {
            self.pool.release(first, pages);
            return Err(error.into());
        }
        for i in 0..pages {
            let frame = first.add(i);
            self.pool.frames().clear_exclusive(frame);
            // Release, with the acquire in `loaded`.
            let slot = &self.frames[(page + i) as usize];
            slot.store(frame.index() as u64 + 1, Ordering::Release);
        }
        if in_place.is_some() {
            // Release, with the acquire in `whole_block`.
            block.in_place.fetch_add(pages, Ordering::Release);
        }
        self.nr_loaded.fetch_add(pages, Ordering::Relaxed);
        #[cfg(not(loom))]
        if let Some(order) = self.order.get() {
            order.note(page, pages);
        }
        Ok(pages)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        (0..self.pages).filter_map(|page| self.loaded(page)).for_each(|frame| {
            self.pool.release(frame, 1);
        });
        self.blocks.iter().filter_map(|block| block.reservation).for_each(|own| {
            self.pool.unreserve(own);
        });
    }
}
