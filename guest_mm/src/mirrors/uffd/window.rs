//! One RAM region's window: address space of this process that shows frames of the pool, and where each
//! of its pages points.
#![allow(unsafe_code, reason = "maps the pool's file into the window, and drops translations")]

use std::ptr::null_mut;
use std::thread::Builder;

use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap_fixed, munmap,
};

use crate::addr::{BlockNo, FrameNo, Gfn, GfnRange, Hva, PageSize};
use crate::geometry::{FRAME_BYTES, Level};
use crate::pool::Pool;
use crate::pool::host_range::HostRange;
use crate::prot::Prot;
use crate::space::RamRegion;
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering};

use super::descriptor::{Descriptor, UffdError};
use super::strays::{Stray, Strays};

/// The window of a region.
#[derive(Debug)]
pub(super) struct Window {
    region: GfnRange,
    host: HostRange,
    /// Where each block of the window points, in blocks of the pool. A block's word is written under
    /// the lock of the table page that spans the block, as all of its mirror calls are.
    blocks: Box<[AtomicU32]>,
    /// Blocks that the host fills by itself. Written like `blocks`.
    open: Box<[AtomicU64]>,
    /// Pages that are a mapping of their own.
    strays: Strays,
}

/// The stack of a thread that makes one system call.
const MOVER_STACK_BYTES: usize = 64 << 10;

/// `MADV_COLLAPSE`, which rustix has no name for.
const MADV_COLLAPSE: i32 = linux_raw_sys::general::MADV_COLLAPSE as i32;

/// How often to ask for it.
const GATHER_TRIES: u32 = 4;

/// Frames of a block.
const BLOCK: u64 = PageSize::Size2M.frames();

impl Window {
    /// A window that points where a region laid out in order would lie; nothing can be accessed in it
    /// without a fault that `uffd` reports.
    pub(super) fn new(
        uffd: &Descriptor,
        pool: &Pool,
        region: &RamRegion,
    ) -> Result<Window, (&'static str, Errno)> {
        let host = HostRange::reserve(region.range.bytes(), PageSize::Size2M.bytes())
            .map_err(|e| ("mmap", e))?;
        let nr_blocks = region.range.frames().div_ceil(BLOCK);
        let window = Window {
            region: region.range,
            host,
            blocks: (0..nr_blocks).map(|_| AtomicU32::new(0)).collect(),
            open: (0..nr_blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            strays: Strays::default(),
        };
        let mut next = region.range.start();
        while next < region.range.end() {
            // One mapping for as many blocks as lie in order. More RAM than pool wraps around: until a block is
            // touched it points anywhere.
            let first = region.shown_block(next, pool.nr_frames());
            let in_order = |&blocks: &u64| {
                let block = next.add(blocks * BLOCK);
                region.range.contains(block)
                    && region.shown_block(block, pool.nr_frames()).index() as u64
                        == first.index() as u64 + blocks
            };
            let blocks = 1 + (1..).take_while(in_order).count() as u64;
            let frames = (blocks * BLOCK).min(region.range.end().as_u64() - next.as_u64());
            let run = GfnRange::new(next, frames).map_err(|_| ("mmap", Errno::INVAL))?;
            window.map_first(uffd, pool, run, first.first()).map_err(|e| ("mmap", e))?;
            window.note(run, first.first());
            next = next.add(frames);
        }
        Ok(window)
    }

    pub(super) fn region(&self) -> GfnRange {
        self.region
    }

    pub(super) fn host(&self) -> &HostRange {
        &self.host
    }

    /// Where `gfn`, a frame of the region, is in this process.
    pub(super) fn hva(&self, gfn: Gfn) -> Hva {
        self.host.start().add((gfn.as_u64() - self.region.start().as_u64()) * FRAME_BYTES)
    }

    /// Points all of `range`, whole blocks or the rest of the region, to frames from `frame` on.
    pub(super) fn remap(
        &self,
        uffd: &Descriptor,
        pool: &Pool,
        range: GfnRange,
        frame: FrameNo,
    ) -> Result<(), Errno> {
        self.close(uffd, range)?;
        let in_place = range.chunks(BLOCK).all(|part| {
            let wanted = frame.add(part.start().as_u64() - range.start().as_u64());
            self.block(part.start()).load(Ordering::Relaxed) == wanted.block().index() as u32
        });
        if in_place && !self.strays.any_in(range) {
            return Ok(());
        }
        self.map(uffd, pool, range, frame)?;
        self.note(range, frame);
        // Only now: had the move failed, they would still be where they are.
        self.strays.remove(range);
        Ok(())
    }

    /// Whether every page of `range`, in one block, points to its frame from `frame` on.
    pub(super) fn is_pointed(&self, range: GfnRange, frame: FrameNo) -> bool {
        let start = range.start();
        let home = self.home(start);
        if self.strays.is_empty() {
            return home == frame;
        }
        self.strays.point_to(range, frame, home)
    }

    /// Where `gfn` points with its block.
    fn home(&self, gfn: Gfn) -> FrameNo {
        let block = BlockNo::new(self.block(gfn).load(Ordering::Relaxed));
        block.first().add(gfn.offset_in(BLOCK))
    }

    /// Points one page to `frame`, wherever its block points, with all rights: the table maps it, so the
    /// host may fill it without asking, and one call does it.
    pub(super) fn stray_open(
        &self,
        uffd: &Descriptor,
        pool: &Pool,
        gfn: Gfn,
        frame: FrameNo,
    ) -> Result<(), Errno> {
        let (page, start) = (GfnRange::entry(gfn, Level::PT), self.hva(gfn));
        self.exchange(pool, gfn, frame)?;
        if self.is_home(gfn, frame) && uffd.register(start, page.bytes()).is_ok() {
            // It is back where its block points. Asked for as its neighbours are, it is one mapping with them, or every
            // page that ever was a stray would stay one.
            self.strays.remove(page);
            return uffd.install(start, page.bytes(), page.bytes(), Prot::Rwx);
        }
        uffd.wake(start, page.bytes())
    }

    /// The same without waking anyone; whatever the page showed before is gone from every vCPU when this returns.
    pub(super) fn exchange(&self, pool: &Pool, gfn: Gfn, frame: FrameNo) -> Result<(), Errno> {
        self.map_open(pool, GfnRange::entry(gfn, Level::PT), frame)?;
        self.note_stray(gfn, Stray { frame, open: true });
        Ok(())
    }

    /// Whether `frame` is where `gfn` points with its block.
    pub(super) fn is_home(&self, gfn: Gfn, frame: FrameNo) -> bool {
        self.home(gfn) == frame
    }

    /// Points one page to `frame`, wherever its block points; nothing is filled yet.
    pub(super) fn stray(
        &self,
        uffd: &Descriptor,
        pool: &Pool,
        gfn: Gfn,
        frame: FrameNo,
    ) -> Result<(), Errno> {
        self.map(uffd, pool, GfnRange::entry(gfn, Level::PT), frame)?;
        self.note_stray(gfn, Stray { frame, open: false });
        Ok(())
    }

    fn note_stray(&self, gfn: Gfn, stray: Stray) {
        if self.home(gfn) == stray.frame && !stray.open {
            self.strays.remove(GfnRange::entry(gfn, Level::PT));
        } else {
            self.strays.insert(gfn, stray);
        }
    }

    /// The pages that are a mapping of their own.
    pub(super) fn strays(&self) -> &Strays {
        &self.strays
    }

    /// Shows the frames from `frame` on in the block `range`, whole, whatever was there, with all rights. The
    /// table maps all of them, so the block is open from the start, and what replaces the old mapping
    /// in one call needs no further one.
    pub(super) fn show(
        &self,
        uffd: &Descriptor,
        pool: &Pool,
        range: GfnRange,
        frame: FrameNo,
    ) -> Result<(), Errno> {
        self.map_open(pool, range, frame)?;
        let (word, bit) = self.open_bit(range.start());
        word.fetch_or(bit, Ordering::Relaxed);
        self.note(range, frame);
        self.strays.remove(range);
        uffd.wake(self.hva(range.start()), range.bytes())
    }

    /// Has the host map the open block at `gfn` now, with a huge page if its folio is huge.
    pub(super) fn touch(&self, gfn: Gfn) {
        let start = self.hva(gfn).as_u64() as *mut _;
        // Failing, the guest's next touch does it.
        // SAFETY: populating changes no byte, and no reference of this process points into a window.
        let _ = unsafe { madvise(start, FRAME_BYTES as usize, Advice::LinuxPopulateWrite) };
    }

    /// Asks the host to gather the pages of the block `range` in one of its own, where they are not. It
    /// refuses for a block that is not open (any more).
    pub(super) fn gather(&self, range: GfnRange) {
        let start = self.hva(range.start()).as_u64() as *mut _;
        for _ in 0..GATHER_TRIES {
            // SAFETY: the host moves the bytes to another of its pages, behind all mappings of the file; no
            // byte changes, and no reference of this process points into a window.
            let result = unsafe { libc::madvise(start, range.bytes() as usize, MADV_COLLAPSE) };
            // Somebody had one of its pages for a moment.
            if result == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN) {
                break;
            }
        }
    }

    /// Opens the block `range`, whole and pointed in place: every page of it is mapped by the table, so
    /// the host may fill it from the file without asking, with a huge page where the folio is huge.
    pub(super) fn open(
        &self,
        uffd: &Descriptor,
        pool: &Pool,
        range: GfnRange,
    ) -> Result<(), Errno> {
        if pool.has_huge_folios() {
            // Small translations would stay for as long as the block is open. Dropped while it is still
            // registered: that is the cheaper order.
            self.drop_mapped(range)?;
        }
        uffd.unregister(self.hva(range.start()), range.bytes())?;
        let (word, bit) = self.open_bit(range.start());
        word.fetch_or(bit, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the block around `gfn` is open.
    pub(super) fn is_open(&self, gfn: Gfn) -> bool {
        let (word, bit) = self.open_bit(gfn);
        word.load(Ordering::Relaxed) & bit != 0
    }

    /// Closes the open blocks of `range`: what they hold stays, what they lose is asked for again.
    pub(super) fn close(&self, uffd: &Descriptor, range: GfnRange) -> Result<(), Errno> {
        for part in range.chunks(BLOCK).filter(|part| self.is_open(part.start())) {
            let block = GfnRange::entry(part.start(), Level::PD);
            uffd.register(self.hva(block.start()), block.bytes())?;
            let (word, bit) = self.open_bit(part.start());
            word.fetch_and(!bit, Ordering::Relaxed);
        }
        // All in one call: what lies between is registered, and may be so again.
        if let Some(span) = self.strays.open_span(range) {
            if uffd.register(self.hva(span.start()), span.bytes()).is_err() {
                // Something else lies between (`scratch`).
                for gfn in self.strays.open_in(span) {
                    uffd.register(self.hva(gfn), FRAME_BYTES)?;
                }
            }
            self.strays.close(span);
        }
        Ok(())
    }

    /// Whether the host fills any page of `range` by itself.
    pub(super) fn has_open(&self, range: GfnRange) -> bool {
        range.chunks(BLOCK).any(|part| self.is_open(part.start())) || self.strays.any_open_in(range)
    }

    /// Drops every translation of `range`; the pages stay in the pool.
    pub(super) fn drop_translations(
        &self,
        uffd: &Descriptor,
        pool: &Pool,
        range: GfnRange,
    ) -> Result<(), Errno> {
        let granule = pool.granule().frames();
        if !range.start().as_u64().is_multiple_of(granule)
            || !range.frames().is_multiple_of(granule)
        {
            // The kernel would round it down, and drop nothing.
            return Err(Errno::INVAL);
        }
        // First, or the host would fill what is dropped.
        self.close(uffd, range)?;
        self.drop_mapped(range)
    }

    fn drop_mapped(&self, range: GfnRange) -> Result<(), Errno> {
        let start = self.hva(range.start()).as_u64() as *mut _;
        // SAFETY: the range lies in the window; on a shared file mapping MADV_DONTNEED changes no byte,
        // and no reference of this process points into a window.
        unsafe { madvise(start, range.bytes() as usize, Advice::LinuxDontNeed) }
    }

    /// Puts scratch memory of no guest's in place of `range`: see `Uffd::abandon`.
    pub(super) fn scratch(&self, range: GfnRange) -> Result<(), Errno> {
        let start = self.hva(range.start()).as_u64() as *mut _;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: as in `map`.
        unsafe { mmap_anonymous(start, range.bytes() as usize, prot, flags)? };
        Ok(())
    }

    /// Notes where the blocks of `range` point.
    fn note(&self, range: GfnRange, frame: FrameNo) {
        for part in range.chunks(BLOCK) {
            let first = frame.add(part.start().as_u64() - range.start().as_u64());
            self.block(part.start()).store(first.block().index() as u32, Ordering::Relaxed);
        }
    }

    /// Maps the pool's file over `range` before anyone can access it.
    fn map_first(
        &self,
        uffd: &Descriptor,
        pool: &Pool,
        range: GfnRange,
        frame: FrameNo,
    ) -> Result<(), Errno> {
        self.map_open(pool, range, frame)?;
        uffd.register(self.hva(range.start()), range.bytes())
    }

    /// Maps the pool's file over `range`, where the host fills it by itself.
    fn map_open(&self, pool: &Pool, range: GfnRange, frame: FrameNo) -> Result<(), Errno> {
        let start = self.hva(range.start()).as_u64() as *mut _;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range lies in the window, which this type owns, so nothing else's is replaced; no
        // reference of this process points into a window.
        unsafe { mmap(start, range.bytes() as usize, prot, flags, pool.file(), frame.offset())? };
        Ok(())
    }

    /// Puts a mapping of the pool's file in the place of `range`, in one step as a guest sees it: what it
    /// accesses meanwhile waits, as before and after.
    ///
    /// Mapping the file in place and registering it would leave a moment in which the guest fills pages
    /// without asking, or, if they are inaccessible for so long, fails. So the mapping is made and
    /// registered elsewhere and moved. The move waits until its event is read: hence the thread, and
    /// the reading here, since this may be the only thread that reads.
    fn map(
        &self,
        uffd: &Descriptor,
        pool: &Pool,
        range: GfnRange,
        frame: FrameNo,
    ) -> Result<(), Errno> {
        let (to, bytes) = (self.hva(range.start()).as_u64(), range.bytes() as usize);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping, placed by the kernel, replaces nothing.
        let staged =
            unsafe { mmap(null_mut(), bytes, prot, flags, pool.file(), frame.offset())? } as u64;
        let moved = uffd.register(Hva::new(staged), range.bytes()).and_then(|()| {
            std::thread::scope(|scope| {
                let mover =
                    Builder::new().stack_size(MOVER_STACK_BYTES).spawn_scoped(scope, move || {
                        let flags = MremapFlags::MAYMOVE;
                        // SAFETY:
                        // 1. the staged mapping is ours alone and nothing points into it;
                        // 2. the target lies in the window, which this type owns, so nothing else's is
                        //    replaced;
                        // 3. no reference of this process points into a window: guests alone access it.
                        unsafe { mremap_fixed(staged as *mut _, bytes, bytes, flags, to as *mut _) }
                            .map(|_| ())
                    });
                let mover = mover.map_err(|_| Errno::AGAIN)?;
                while !mover.is_finished() {
                    // What cannot be read here is read by a fault thread. The event that was read may be
                    // another mover's, so it is only a hint that this one is about to end.
                    let mut soon = u32::from(uffd.pass_over_messages() == Ok(true)) * 100;
                    while soon > 0 && !mover.is_finished() {
                        std::thread::yield_now();
                        soon -= 1;
                    }
                }
                // It has no way to panic; if it did, the mapping was not moved.
                mover.join().unwrap_or(Err(Errno::INTR))
            })
        });
        if moved.is_err() {
            // SAFETY: the staged mapping was not moved, and nothing points into it. The target may have
            // been unmapped by the failed move; where it was, nobody else may come, and the guest may
            // not read what lies there.
            unsafe {
                let _ = munmap(staged as *mut _, bytes);
                let keep = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
                let _ = mmap_anonymous(to as *mut _, bytes, ProtFlags::empty(), keep);
            }
        }
        moved
    }

    fn open_bit(&self, gfn: Gfn) -> (&AtomicU64, u64) {
        let block = (gfn.as_u64() - self.region.start().as_u64()) / BLOCK;
        (&self.open[(block / 64) as usize], 1 << (block % 64))
    }

    fn block(&self, gfn: Gfn) -> &AtomicU32 {
        &self.blocks[((gfn.as_u64() - self.region.start().as_u64()) / BLOCK) as usize]
    }
}

/// Why a guest has no window.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// No userfaultfd.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// No address space, or no mapping of the pool.
    #[error("cannot map {bytes} bytes of guest memory: {step} failed: {source}")]
    Map {
        /// The region's size.
        bytes: u64,
        /// The call that failed.
        step: &'static str,
        /// What it said.
        source: Errno,
    },
}

/// The windows of all regions of a guest.
pub(super) type Windows = Arc<[Window]>;
