//! The pool's memory, mapped once and linearly: how devices, and this crate, reach the bytes of a frame.
#![allow(unsafe_code, reason = "maps the pool, and copies bytes that a guest may be changing")]

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};

use crate::addr::{BlockNo, FrameNo, PageSize};
use crate::geometry::FRAME_BYTES;

use super::host_range::HostRange;

/// `MADV_COLLAPSE`, which rustix has no name for.
const MADV_COLLAPSE: i32 = linux_raw_sys::general::MADV_COLLAPSE as i32;

/// Bytes that are compared at once.
const CHUNK: usize = 256;

/// The mapping.
#[derive(Debug)]
pub(crate) struct DirectMap {
    range: HostRange,
}

impl DirectMap {
    /// Maps all `bytes` of `file`.
    pub(crate) fn new(file: impl AsFd, bytes: u64) -> Result<DirectMap, Errno> {
        let range = HostRange::reserve(bytes, PageSize::Size2M.bytes())?;
        let start = range.start().as_u64() as *mut _;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // Without NORESERVE, which other files take no notice of: a hugetlb file sets its pages aside here or
        // refuses, instead of killing this process at the first page that is not to be had.
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range was reserved just now and nothing else names an address in it.
        unsafe { mmap(start, bytes as usize, prot, flags, file, 0)? };
        // Advice only: without it the pool works, with smaller folios or a larger core file.
        // SAFETY: neither advice changes what the memory holds.
        unsafe {
            let _ = madvise(start, bytes as usize, Advice::LinuxHugepage);
            let _ = madvise(start, bytes as usize, Advice::LinuxDontDump);
        }
        Ok(DirectMap { range })
    }

    #[inline]
    fn pointer(&self, frame: FrameNo, offset: usize, bytes: usize) -> *mut u8 {
        let start = frame.offset() + offset as u64;
        assert!(start + bytes as u64 <= self.range.bytes(), "outside of the pool");
        (self.range.start().as_u64() + start) as *mut u8
    }

    /// Gives `frames` from `first` on the bytes of a fresh page. Nobody else may use them yet.
    pub(crate) fn zero(&self, first: FrameNo, frames: u64) {
        let bytes = (frames * FRAME_BYTES) as usize;
        // SAFETY: `pointer` has checked that the bytes lie in the mapping; they are mapped read-write
        // for as long as `self` lives, and any byte value is a `u8`.
        unsafe { self.pointer(first, 0, bytes).write_bytes(0, bytes) };
    }

    /// Asks the host to back `frames` from `first` on, whoever uses them. Their bytes stay what they are.
    ///
    /// # Errors
    /// What `madvise` says; `EINVAL` before Linux 5.14.
    pub(crate) fn prefault(&self, first: FrameNo, frames: u64) -> Result<(), Errno> {
        let bytes = (frames * FRAME_BYTES) as usize;
        let start = self.pointer(first, 0, bytes);
        // SAFETY: populating changes no byte.
        unsafe { madvise(start.cast(), bytes, Advice::LinuxPopulateWrite) }
    }

    /// Asks the host to back `block` by a huge page, whoever uses it; it may refuse. Its bytes stay what they are.
    pub(crate) fn gather(&self, block: BlockNo) {
        let bytes = PageSize::Size2M.bytes() as usize;
        let start = self.pointer(block.first(), 0, bytes);
        // Of a block that nobody has touched yet the host makes none: it takes one for cut off.
        let _or_it_refuses = self.prefault(block.first(), 1);
        // SAFETY: the host moves the bytes to another of its pages, behind all mappings of the file; no byte changes.
        let _refused_or_not = unsafe { libc::madvise(start.cast(), bytes, MADV_COLLAPSE) };
    }

    /// Makes the host back `frames` from `first` on, which have never been written and are the caller's
    /// alone, so that they can be mapped into a window. They read as zero.
    pub(crate) fn populate(&self, first: FrameNo, frames: u64) {
        if frames > 1 && self.prefault(first, frames).is_ok() {
            return;
        }
        let start = self.pointer(first, 0, (frames * FRAME_BYTES) as usize);
        for frame in 0..frames {
            // SAFETY:
            // 1. the byte lies in the mapping, as above;
            // 2. it is zero and nobody else uses the frame, so writing zero changes nothing. Volatile,
            //    because the write is wanted for its page fault alone.
            unsafe { start.add((frame * FRAME_BYTES) as usize).write_volatile(0) };
        }
    }

    /// Copies the bytes of the page `from` to the page `to`.
    pub(crate) fn copy(&self, from: FrameNo, to: FrameNo) {
        let bytes = FRAME_BYTES as usize;
        let (from, to) = (self.pointer(from, 0, bytes), self.pointer(to, 0, bytes));
        // SAFETY: both pages lie in the mapping, and two frames do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    }

    /// Whether two pages have the same bytes. A guest may be writing: then the answer is about some moment.
    pub(crate) fn is_same(&self, one: FrameNo, other: FrameNo) -> bool {
        let (mut left, mut right) = ([0; CHUNK], [0; CHUNK]);
        (0..FRAME_BYTES as usize).step_by(CHUNK).all(|offset| {
            self.read(one, offset, &mut left);
            self.read(other, offset, &mut right);
            left == right
        })
    }

    /// Whether all bytes of a page are zero; as [`DirectMap::is_same`].
    pub(crate) fn is_zero(&self, frame: FrameNo) -> bool {
        let mut bytes = [0; CHUNK];
        (0..FRAME_BYTES as usize).step_by(CHUNK).all(|offset| {
            self.read(frame, offset, &mut bytes);
            bytes == [0; CHUNK]
        })
    }

    /// Has the processor fetch the first half of `frame`, if there is such a frame, and whoever uses it; its own prefetcher
    /// sees to the rest, but does not begin a page by itself.
    pub(crate) fn prefetch(&self, frame: FrameNo) {
        #[cfg(target_arch = "x86_64")]
        if frame.offset() + FRAME_BYTES <= self.range.bytes() {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let start = self.pointer(frame, 0, FRAME_BYTES as usize).cast::<i8>();
            for line in (0..FRAME_BYTES as usize / 2).step_by(64) {
                // SAFETY: every x86-64 has SSE; the hint neither reads nor faults, and the address lies in the mapping.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(line)) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = frame;
    }

    /// Where `bytes` from `offset` of `frame` on are, for a device that has their frames pinned.
    #[inline]
    pub(crate) fn address(&self, frame: FrameNo, offset: usize, bytes: usize) -> *mut u8 {
        self.pointer(frame, offset, bytes)
    }

    /// Copies out of `frame`, from `offset` on. The guest may be writing: torn values are its own.
    pub(crate) fn read(&self, frame: FrameNo, offset: usize, into: &mut [u8]) {
        let from = self.pointer(frame, offset, into.len());
        // SAFETY: both sides are valid for the length and do not overlap: `into` is memory of this
        // process's own, and nothing but this type names addresses of the direct map.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    /// Copies into `frame`, from `offset` on.
    pub(crate) fn write(&self, frame: FrameNo, offset: usize, from: &[u8]) {
        let into = self.pointer(frame, offset, from.len());
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
    }
}
