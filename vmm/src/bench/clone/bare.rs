//! The baseline: pages that are copied for a store, by the shortest loop that can do it. Read a message, copy the page to
//! where the copies are, `mmap` the copy over the page, wake; no table, no pool, no books.
#![allow(unsafe_code, reason = "maps memory, and ioctls with the structures they ask for")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use linux_raw_sys::general::{uffd_msg, uffdio_continue, uffdio_range};
use linux_raw_sys::ioctl::{UFFDIO_CONTINUE, UFFDIO_WAKE};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::ioctl::{Opcode, Setter, Updater, ioctl};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::bench::bare::{map, open, register};

use super::PAGE;

/// `UFFDIO_CONTINUE_MODE_WP`: install write-protected (Linux 6.4).
const WRITE_PROTECTED: u64 = 1 << 1;

/// A window over a file whose first half is the image, and whose second half has the copies.
#[derive(Debug)]
pub(super) struct BareCopies {
    mappings: Arc<Mappings>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Mappings {
    file: OwnedFd,
    window: u64,
    direct: u64,
    bytes: u64,
}

impl BareCopies {
    /// `bytes` of an image, all of it mapped.
    pub(super) fn new(bytes: u64) -> io::Result<BareCopies> {
        let file = memfd_create("bare", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, 2 * bytes)?;
        let (window, direct) = (map(&file, bytes)?, map(&file, 2 * bytes)?);
        let mappings = Arc::new(Mappings { file, window, direct, bytes });
        // SAFETY: the direct mapping is ours, and as large. The copies' pages are made here too, as a pool's frames
        // that were used before are there.
        unsafe { (direct as *mut u8).write_bytes(7, 2 * bytes as usize) };
        let uffd = open()?;
        register(&uffd, window, bytes)?;
        let range = uffdio_range { start: window, len: bytes };
        let mut arg = uffdio_continue { range, mode: WRITE_PROTECTED, mapped: 0 };
        // SAFETY: UFFDIO_CONTINUE reads and writes one `uffdio_continue`.
        unsafe { ioctl(&uffd, Updater::<{ UFFDIO_CONTINUE as Opcode }, _>::new(&mut arg)) }?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let thread = {
            let (mappings, stop) = (mappings.clone(), stop.clone());
            std::thread::Builder::new()
                .name("bare".into())
                .spawn(move || serve(&uffd, &mappings, &stop))?
        };
        Ok(BareCopies { mappings, stop, thread: Some(thread) })
    }

    /// The window's first byte.
    pub(super) fn window(&self) -> *mut u8 {
        self.mappings.window as *mut u8
    }
}

impl Drop for BareCopies {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        for (start, bytes) in [(self.window, self.bytes), (self.direct, 2 * self.bytes)] {
            // SAFETY: mapped in `BareCopies::new`; the loop has ended.
            let _ = unsafe { munmap(start as *mut _, bytes as usize) };
        }
    }
}

fn serve(uffd: &OwnedFd, mappings: &Mappings, stop: &OwnedFd) {
    const BYTES: usize = size_of::<uffd_msg>();
    loop {
        let mut sources = [PollFd::new(uffd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        let _ = poll(&mut sources, None);
        if !sources[1].revents().is_empty() {
            return;
        }
        let mut buffer = [0u8; BYTES];
        if rustix::io::read(uffd, &mut buffer) != Ok(BYTES) {
            continue;
        }
        // SAFETY: the kernel wrote a whole message, and only page faults are asked for.
        let address =
            unsafe { buffer.as_ptr().cast::<uffd_msg>().read_unaligned().arg.pagefault.address };
        copy(uffd, mappings, address & !(PAGE - 1)).expect("a page of the window can be replaced");
    }
}

fn copy(uffd: &OwnedFd, mappings: &Mappings, page: u64) -> io::Result<()> {
    let offset = page - mappings.window;
    let (from, to) = (mappings.direct + offset, mappings.direct + mappings.bytes + offset);
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: both pages lie in the direct mapping, and nobody has the copy yet; the page lies in the window, which
    // this type owns.
    unsafe {
        std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, PAGE as usize);
        let fd = mappings.file.as_fd();
        mmap(page as *mut _, PAGE as usize, prot, flags, fd, mappings.bytes + offset)?;
    }
    let range = uffdio_range { start: page, len: PAGE };
    // SAFETY: UFFDIO_WAKE reads one `uffdio_range`.
    unsafe { ioctl(uffd, Setter::<{ UFFDIO_WAKE as Opcode }, _>::new(range)) }?;
    Ok(())
}
