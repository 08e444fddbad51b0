//! A reserved range of this process's address space, aligned so that huge pages can map into it.
#![allow(unsafe_code, reason = "reserves and releases address space")]

use std::ptr::null_mut;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::addr::Hva;

/// Address space that belongs to its holder: nothing else in the process is mapped there. What it maps
/// on top with `MAP_FIXED` goes away with it.
#[derive(Debug)]
pub(crate) struct HostRange {
    start: u64,
    bytes: u64,
}

impl HostRange {
    /// Reserves `bytes` (a multiple of the page size) aligned to `align` (a power of two), inaccessible
    /// and not accounted.
    ///
    /// # Errors
    /// What `mmap` says, `ENOMEM` most of all.
    pub(crate) fn reserve(bytes: u64, align: u64) -> Result<HostRange, Errno> {
        assert!(align.is_power_of_two() && bytes > 0);
        let total = bytes.checked_add(align).ok_or(Errno::NOMEM)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping, placed by the kernel, replaces nothing.
        let raw = unsafe { mmap_anonymous(null_mut(), total as usize, ProtFlags::empty(), flags)? };
        let raw = raw as u64;
        let start = raw.next_multiple_of(align);
        let range = HostRange { start, bytes };
        unmap(raw, start - raw);
        unmap(start + bytes, raw + total - start - bytes);
        Ok(range)
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> Hva {
        Hva::new(self.start)
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for HostRange {
    fn drop(&mut self) {
        unmap(self.start, self.bytes);
    }
}

fn unmap(start: u64, bytes: u64) {
    if bytes == 0 {
        return;
    }
    // SAFETY: the pages are part of a reservation made above and are named only by the `HostRange` that
    // is being trimmed or dropped; users of addresses inside it borrow it.
    let result = unsafe { munmap(start as *mut _, bytes as usize) };
    debug_assert!(result.is_ok(), "a reserved range can be unmapped");
}
