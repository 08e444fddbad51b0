//! The baseline: pages that show one shared page, and a loop that gives a store to one of them a copy. Read a message, copy
//! 4 KiB, map the copy in place, wake; no table, no pool, no books. A page that showed the shared one is a mapping of its own:
//! the loop makes it one with its neighbours again, as whoever does this more than some ten thousand times has to, or leaves it
//! so, which is cheaper once.
#![allow(unsafe_code, reason = "maps memory, touches it as a guest would, and ioctls")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use linux_raw_sys::general::{UFFD_PAGEFAULT_FLAG_WP, uffdio_continue, uffdio_range};
use linux_raw_sys::ioctl::{UFFDIO_CONTINUE, UFFDIO_WAKE};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::bench::bare::{Waiting, map, open, proceed, register, serve};

use super::median_of_each;
use super::served::PAGE;

/// `UFFDIO_CONTINUE_MODE_WP`, which `linux-raw-sys` has no name for.
const CONTINUE_WRITE_PROTECTED: u64 = 1 << 1;

/// Whether a page has been read since it was shared, and so is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Yes,
    No,
}

/// What becomes of the mapping of a page that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// It is one with its neighbours again.
    Joined,
    /// It stays one of its own.
    Apart,
}

/// A window of pages, each of which has a place in the file; behind them lies the page that they share.
#[derive(Debug)]
struct Window {
    uffd: OwnedFd,
    file: OwnedFd,
    start: u64,
    direct: u64,
    pages: u64,
    mapping: Mapping,
}

/// Such pages, served until this is dropped.
#[derive(Debug)]
pub(super) struct BareShared {
    window: Arc<Window>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl BareShared {
    pub(super) fn new(pages: u64, mapping: Mapping) -> io::Result<BareShared> {
        let bytes = pages * PAGE;
        let file = memfd_create("shared", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, bytes + PAGE)?;
        let (start, direct) = (map(&file, bytes)?, map(&file, bytes + PAGE)?);
        // SAFETY: all of it lies in the direct mapping, which nothing else uses yet.
        unsafe { (direct as *mut u8).write_bytes(7, (bytes + PAGE) as usize) };
        let window = Arc::new(Window { uffd: open()?, file, start, direct, pages, mapping });
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let thread = {
            let (window, stop) = (Arc::clone(&window), Arc::clone(&stop));
            let serve = move || serve(&window.uffd, &stop, |fault| window.copy(fault));
            std::thread::Builder::new().name("bare".into()).spawn(serve)?
        };
        Ok(BareShared { window, stop, thread: Some(thread) })
    }

    /// Shares all pages again.
    pub(super) fn share(&self, seen: Seen) -> io::Result<()> {
        let Window { uffd, start, pages, .. } = &*self.window;
        self.window.place(0, 0, *pages)?;
        register(uffd, *start, pages * PAGE)?;
        if seen == Seen::Yes {
            for page in 0..*pages {
                self.window.place(page, *pages, 1)?;
                register(uffd, start + page * PAGE, PAGE)?;
                self.window.show(page)?;
            }
        }
        Ok(())
    }

    /// Stores to each page; the median, in microseconds.
    pub(super) fn store_each(&self) -> f64 {
        // SAFETY: the page lies in the window, which is mapped as long as this lives; an access that has to wait is served
        // by the loop.
        median_of_each(self.window.pages, |page| unsafe {
            ((self.window.start + page * PAGE) as *mut u8).write_volatile(7);
        })
    }
}

impl Window {
    /// Maps `pages` of the file from `from` on at the page `at`.
    fn place(&self, at: u64, from: u64, pages: u64) -> io::Result<()> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        let (start, bytes) = ((self.start + at * PAGE) as *mut _, (pages * PAGE) as usize);
        // SAFETY: the range lies in the window, so nothing else's is replaced.
        unsafe { mmap(start, bytes, prot, flags, self.file.as_fd(), from * PAGE)? };
        Ok(())
    }

    /// Maps a page for reading.
    fn show(&self, page: u64) -> io::Result<()> {
        let range = uffdio_range { start: self.start + page * PAGE, len: PAGE };
        let mut arg = uffdio_continue { range, mode: CONTINUE_WRITE_PROTECTED, mapped: 0 };
        // SAFETY: UFFDIO_CONTINUE reads and writes one `uffdio_continue`.
        unsafe {
            ioctl(&self.uffd, Updater::<{ UFFDIO_CONTINUE as Opcode }, _>::new(&mut arg))?;
        }
        Ok(())
    }

    /// Serves a store.
    fn copy(&self, Waiting { address, flags }: Waiting) {
        let page = (address - self.start) / PAGE;
        let start = self.start + page * PAGE;
        let (from, to) = (self.direct + self.pages * PAGE, self.direct + page * PAGE);
        // SAFETY: both pages lie in the direct mapping, and nobody uses the second yet.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, PAGE as usize) };
        if flags & u64::from(UFFD_PAGEFAULT_FLAG_WP) == 0 {
            // The window shows its place already, and has not mapped it.
            return proceed(&self.uffd, start).expect("a page of the window can be continued");
        }
        self.place(page, page, 1).expect("a page of the window can be placed");
        if self.mapping == Mapping::Joined {
            register(&self.uffd, start, PAGE).expect("a page of the window can be registered");
            return proceed(&self.uffd, start).expect("a page of the window can be continued");
        }
        let mut range = uffdio_range { start, len: PAGE };
        // SAFETY: UFFDIO_WAKE reads one `uffdio_range`.
        let woken =
            unsafe { ioctl(&self.uffd, Updater::<{ UFFDIO_WAKE as Opcode }, _>::new(&mut range)) };
        woken.expect("who waits can be woken");
    }
}

impl Drop for BareShared {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let bytes = (self.pages * PAGE) as usize;
        for (start, bytes) in [(self.start, bytes), (self.direct, bytes + PAGE as usize)] {
            // SAFETY: mapped in `BareShared::new`; the loop has ended.
            let _ = unsafe { munmap(start as *mut _, bytes) };
        }
    }
}
