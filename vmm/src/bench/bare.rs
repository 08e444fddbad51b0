//! The baseline: guest memory by the shortest loop that can serve it. Read a message, clear the page,
//! `UFFDIO_CONTINUE`; no table, no pool, no books.
#![allow(unsafe_code, reason = "maps memory, and ioctls with the structures they ask for")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::Arc;
use std::thread::JoinHandle;

use linux_raw_sys::general::{
    UFFD_API, UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP, uffd_msg, uffdio_api, uffdio_continue, uffdio_range, uffdio_register,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_CONTINUE, UFFDIO_REGISTER};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::mm::{
    Advice, MapFlags, ProtFlags, UserfaultfdFlags, madvise, mmap, mmap_anonymous, munmap,
    userfaultfd,
};

use crate::kvm::Slot;
use crate::ram::Ram;

const PAGE: u64 = 4096;
const ALIGN: u64 = 2 << 20;

/// Two mappings of a memfd: where the guest accesses it, and where the loop clears it.
#[derive(Debug)]
struct Mappings {
    window: u64,
    direct: u64,
    bytes: u64,
}

/// Memory that a bare loop serves until this is dropped.
#[derive(Debug)]
pub(super) struct BareRam {
    uffd: Arc<OwnedFd>,
    mappings: Arc<Mappings>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl BareRam {
    /// `bytes` of untouched memory.
    pub(super) fn new(bytes: u64) -> io::Result<BareRam> {
        let file = memfd_create("bare", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, bytes)?;
        let (window, direct) = (map(&file, bytes)?, map(&file, bytes)?);
        let mappings = Arc::new(Mappings { window, direct, bytes });
        let uffd = Arc::new(open()?);
        register(&uffd, window, bytes)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let thread = {
            let (uffd, mappings, stop) = (uffd.clone(), mappings.clone(), stop.clone());
            std::thread::Builder::new()
                .name("bare".into())
                .spawn(move || serve(&uffd, &stop, |fault| fill(&uffd, &mappings, fault.address)))?
        };
        Ok(BareRam { uffd, mappings, stop, thread: Some(thread) })
    }

    /// Puts bytes at an address, page by page, as the service does before the guest runs.
    pub(super) fn put(&self, gpa: u64, page: &[u8; PAGE as usize]) -> io::Result<()> {
        assert!(gpa.is_multiple_of(PAGE) && gpa + PAGE <= self.mappings.bytes);
        let to = (self.mappings.direct + gpa) as *mut u8;
        // SAFETY: the page lies in the direct mapping, which nothing else accesses yet.
        unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), to, page.len()) };
        proceed(&self.uffd, self.mappings.window + gpa)
    }

    /// The window's first byte.
    pub(super) fn window(&self) -> *mut u8 {
        self.mappings.window as *mut u8
    }
}

impl Ram for BareRam {
    fn slots(&self) -> Vec<Slot> {
        vec![Slot { gpa: 0, hva: self.mappings.window, bytes: self.mappings.bytes }]
    }

    fn read(&self, gpa: u64, into: &mut [u8]) -> bool {
        let inside =
            gpa.checked_add(into.len() as u64).is_some_and(|end| end <= self.mappings.bytes);
        if inside {
            // SAFETY: inside the direct mapping; torn values are the guest's own.
            unsafe {
                let from = (self.mappings.direct + gpa) as *const u8;
                std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len());
            }
        }
        inside
    }

    fn ready(&self, gpa: u64, _write: bool) -> bool {
        gpa < self.mappings.bytes
    }
}

impl Drop for BareRam {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        for start in [self.window, self.direct] {
            // SAFETY: mapped in `BareRam::new`; the loop has ended and the VM is gone.
            let _ = unsafe { munmap(start as *mut _, self.bytes as usize) };
        }
    }
}

/// An access that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) address: u64,
    /// As in the kernel's message.
    pub(super) flags: u64,
}

/// Calls `on_fault` for each access that waits, until `stop` says so.
pub(super) fn serve(uffd: &OwnedFd, stop: &OwnedFd, on_fault: impl Fn(Waiting)) {
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
        let fault = unsafe { buffer.as_ptr().cast::<uffd_msg>().read_unaligned().arg.pagefault };
        on_fault(Waiting { address: fault.address, flags: fault.flags });
    }
}

/// Clears the page at `address` and maps it.
fn fill(uffd: &OwnedFd, mappings: &Mappings, address: u64) {
    let page = address & !(PAGE - 1);
    let offset = page - mappings.window;
    // SAFETY: the page lies in the direct mapping; the guest does not have it yet.
    unsafe { ((mappings.direct + offset) as *mut u8).write_bytes(0, PAGE as usize) };
    proceed(uffd, page).expect("a page of the window can be continued");
}

pub(super) fn proceed(uffd: &OwnedFd, page: u64) -> io::Result<()> {
    let range = uffdio_range { start: page, len: PAGE };
    let mut arg = uffdio_continue { range, mode: 0, mapped: 0 };
    // SAFETY: UFFDIO_CONTINUE reads and writes one `uffdio_continue`.
    match unsafe { ioctl(uffd, Updater::<{ UFFDIO_CONTINUE as Opcode }, _>::new(&mut arg)) } {
        // A second message of one fault.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A mapping of the first `bytes` of a file that starts at a multiple of 2 MiB.
pub(super) fn map(file: &OwnedFd, bytes: u64) -> io::Result<u64> {
    // SAFETY: a new range, placed by the kernel; then the file over an aligned part of it.
    unsafe {
        let none = ProtFlags::empty();
        let room = (bytes + ALIGN) as usize;
        let raw = mmap_anonymous(null_mut(), room, none, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
        let start = (raw as u64).next_multiple_of(ALIGN);
        let before = start - raw as u64;
        if before > 0 {
            munmap(raw, before as usize)?;
        }
        munmap((start + bytes) as *mut _, (ALIGN - before) as usize)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        mmap(start as *mut _, bytes as usize, prot, flags, file.as_fd(), 0)?;
        let _ = madvise(start as *mut _, bytes as usize, Advice::LinuxDontDump);
        Ok(start)
    }
}

/// A userfaultfd with no window yet.
pub(super) fn open() -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: the descriptor is used on windows, which only a guest accesses.
    let uffd = unsafe { userfaultfd(flags)? };
    let features = UFFD_FEATURE_PAGEFAULT_FLAG_WP
        | UFFD_FEATURE_MISSING_SHMEM
        | UFFD_FEATURE_MINOR_SHMEM
        | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    let mut api = uffdio_api { api: UFFD_API.into(), features: features.into(), ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
    unsafe { ioctl(&uffd, Updater::<{ UFFDIO_API as Opcode }, _>::new(&mut api))? };
    Ok(uffd)
}

/// Has `uffd` report what is not mapped in a window.
pub(super) fn register(uffd: &OwnedFd, start: u64, bytes: u64) -> io::Result<()> {
    let mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP;
    let range = uffdio_range { start, len: bytes };
    let mut registered = uffdio_register { range, mode: mode.into(), ioctls: 0 };
    // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`.
    unsafe { ioctl(uffd, Updater::<{ UFFDIO_REGISTER as Opcode }, _>::new(&mut registered))? };
    Ok(())
}
