//! The kernel's way: pages registered as buffers of an io_uring, which pins them until they are unregistered.
#![allow(unsafe_code, reason = "registers buffers with the kernel")]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::null_mut;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io_uring::{
    IoringRegisterOp, io_uring_params, io_uring_register, io_uring_setup, iovec,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::pages::PAGE;

/// The most that one call registers (`IORING_MAX_REG_BUFFERS`).
pub(super) const MOST: u64 = 1 << 14;

/// A ring, and [`MOST`] pages of shared memory, as a pool's are, present.
#[derive(Debug)]
pub(super) struct Ring {
    ring: OwnedFd,
    start: u64,
    buffers: Vec<iovec>,
}

impl Ring {
    /// A ring with no buffers registered.
    pub(super) fn new() -> io::Result<Ring> {
        let mut params = io_uring_params::default();
        // SAFETY: asks for a small ring with no flags; it is never mapped or entered.
        let ring = unsafe { io_uring_setup(1, &mut params)? };
        let bytes = MOST * PAGE;
        let file = memfd_create("registered", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, bytes)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping, placed by the kernel.
        let start = unsafe { mmap(null_mut(), bytes as usize, prot, flags, &file, 0)? } as u64;
        let buffer =
            |page: u64| iovec { iov_base: (start + page * PAGE) as *mut _, iov_len: PAGE as usize };
        Ok(Ring { ring, start, buffers: (0..MOST).map(buffer).collect() })
    }

    /// Registers all pages, each a buffer, with one call, and unregisters them.
    pub(super) fn in_bulk(&self) -> io::Result<()> {
        self.register(&self.buffers)
    }

    /// Registers one page and unregisters it.
    pub(super) fn one(&self, page: u64) -> io::Result<()> {
        self.register(&self.buffers[page as usize..][..1])
    }

    fn register(&self, buffers: &[iovec]) -> io::Result<()> {
        let (at, count) = (buffers.as_ptr().cast(), buffers.len() as u32);
        // SAFETY: the buffers lie in a mapping that outlives the ring's use of them, which never begins:
        // nothing is submitted.
        unsafe {
            io_uring_register(&self.ring, IoringRegisterOp::RegisterBuffers, at, count)?;
            io_uring_register(&self.ring, IoringRegisterOp::UnregisterBuffers, null_mut(), 0)?;
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; nothing is registered any more, and no reference points into it.
        let _ = unsafe { munmap(self.start as *mut _, (MOST * PAGE) as usize) };
    }
}
