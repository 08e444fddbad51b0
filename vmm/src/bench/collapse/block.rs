//! Blocks made by hand: a memfd's for the kernel to collapse, and a scattered one to gather by hand.
#![allow(unsafe_code, reason = "maps files twice, and copies and advises what it has mapped")]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::copy_nonoverlapping;

use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, openat};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use crate::bench::bare::{map, open, register};

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
/// Bytes of a block.
pub(super) const BLOCK: u64 = 2 << 20;

/// Whether the guest has accessed its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accessed {
    /// They are in its window.
    Yes,
    /// They are in its tables only, as what was populated for it.
    No,
}

/// Memory that is mapped twice, as a pool's is: where its owner reaches it, and where a guest does.
#[derive(Debug)]
struct Twice {
    file: OwnedFd,
    direct: u64,
    window: u64,
    direct_bytes: u64,
    window_bytes: u64,
}

impl Twice {
    fn new(file: OwnedFd, direct_bytes: u64, window_bytes: u64) -> io::Result<Twice> {
        ftruncate(&file, direct_bytes)?;
        let direct = map(&file, direct_bytes)?;
        let window = map(&file, window_bytes)?;
        Ok(Twice { file, direct, window, direct_bytes, window_bytes })
    }

    /// Whether one of the mappings has `address`.
    fn has(&self, address: u64) -> bool {
        let direct = self.direct..self.direct + self.direct_bytes;
        let window = self.window..self.window + self.window_bytes;
        direct.contains(&address) || window.contains(&address)
    }

    /// Touches a page through one of the mappings.
    fn touch(&self, address: u64) {
        assert!(self.has(address));
        // SAFETY: mapped, as was just checked, for as long as this lives; nothing else accesses it.
        unsafe { (address as *mut u8).write_volatile(1) };
    }

    /// Reads every line of `bytes` at `start` of the direct mapping, so that they are in the caches.
    fn warm(&self, start: u64, bytes: u64) {
        assert!(start + bytes <= self.direct_bytes);
        for offset in (start..start + bytes).step_by(64) {
            // SAFETY: inside of the direct mapping, as was just checked.
            let _ = unsafe { ((self.direct + offset) as *const u8).read_volatile() };
        }
    }
}

impl Drop for Twice {
    fn drop(&mut self) {
        for (start, bytes) in [(self.direct, self.direct_bytes), (self.window, self.window_bytes)] {
            // SAFETY: mapped in `new`, or put in its place later; no reference points into it.
            let _ = unsafe { munmap(start as *mut _, bytes as usize) };
        }
    }
}

/// 512 small pages of a memfd, present in two mappings.
#[derive(Debug)]
pub(super) struct SmallBlock(Twice);

impl SmallBlock {
    /// A new one.
    pub(super) fn new() -> io::Result<SmallBlock> {
        let file = memfd_create("small", MemfdFlags::CLOEXEC)?;
        let block = Twice::new(file, BLOCK, BLOCK)?;
        for start in [block.direct, block.window] {
            (0..BLOCK).step_by(PAGE as usize).for_each(|offset| block.touch(start + offset));
        }
        Ok(SmallBlock(block))
    }

    /// Has it in the caches.
    pub(super) fn warm(&self) {
        self.0.warm(0, BLOCK);
    }

    /// `MADV_COLLAPSE`, and a touch so that the other mapping is huge as well.
    pub(super) fn collapse(&self) -> io::Result<()> {
        // SAFETY: the advice changes no byte of what is mapped.
        let refused =
            unsafe { libc::madvise(self.0.window as *mut _, BLOCK as usize, libc::MADV_COLLAPSE) };
        if refused != 0 {
            return Err(io::Error::last_os_error());
        }
        self.0.touch(self.0.direct);
        Ok(())
    }
}

/// Scattered blocks on huge folios: a window whose every page is a mapping of its own, and as many whole
/// blocks to gather them in.
#[derive(Debug)]
pub(super) struct Scattered {
    memory: Twice,
    uffd: OwnedFd,
    blocks: u64,
}

impl Scattered {
    /// `blocks` blocks whose pages lie in turns: page `i` of all blocks, then page `i + 1`.
    pub(super) fn new(blocks: u64) -> io::Result<Scattered> {
        let memory =
            Twice::new(huge_file(2 * blocks * BLOCK)?, 2 * blocks * BLOCK, blocks * BLOCK)?;
        let bytes = memory.direct_bytes as usize;
        // SAFETY: the advice changes no byte of what is mapped.
        unsafe { madvise(memory.direct as *mut _, bytes, Advice::LinuxHugepage)? };
        for offset in (0..memory.direct_bytes).step_by(PAGE as usize) {
            memory.touch(memory.direct + offset);
        }
        Ok(Scattered { memory, uffd: open()?, blocks })
    }

    /// Points every page of the window to its frame, and has it there; or, where the guest has accessed none,
    /// leaves the window empty and in one piece.
    pub(super) fn scatter(&self, accessed: Accessed) -> io::Result<()> {
        let window = self.memory.window;
        if accessed == Accessed::No {
            self.point(window, self.blocks * BLOCK, 0)?;
            return register(&self.uffd, window, self.blocks * BLOCK);
        }
        for page in 0..self.blocks * BLOCK / PAGE {
            let (block, index) = (page / (BLOCK / PAGE), page % (BLOCK / PAGE));
            self.point(window + page * PAGE, PAGE, self.frame(block, index))?;
            self.memory.touch(window + page * PAGE);
        }
        Ok(())
    }

    /// Has the pages of a block in the caches.
    pub(super) fn warm(&self, block: u64) {
        (0..BLOCK / PAGE).for_each(|page| self.memory.warm(self.frame(block, page), PAGE));
    }

    /// Gathers a block: what a copy collapse cannot do without. The window is taken from the guest, whose
    /// accesses are reported from then on; the pages are copied; the window is pointed to the copies and
    /// takes a huge page at the first touch.
    pub(super) fn gather(&self, block: u64) -> io::Result<()> {
        let (window, to) = (self.memory.window + block * BLOCK, (self.blocks + block) * BLOCK);
        register(&self.uffd, window, BLOCK)?;
        // SAFETY: a shared mapping of a file loses no byte.
        unsafe { madvise(window as *mut _, BLOCK as usize, Advice::LinuxDontNeed)? };
        for page in 0..BLOCK / PAGE {
            let from = self.memory.direct + self.frame(block, page);
            let to = self.memory.direct + to + page * PAGE;
            // SAFETY: frames of the lower half of the direct mapping, to the upper half.
            unsafe { copy_nonoverlapping(from as *const u8, to as *mut u8, PAGE as usize) };
        }
        self.point(window, BLOCK, to)?;
        self.memory.touch(window);
        Ok(())
    }

    /// Where a page's bytes are in the file.
    fn frame(&self, block: u64, page: u64) -> u64 {
        (page * self.blocks + block) * PAGE
    }

    fn point(&self, start: u64, bytes: u64, offset: u64) -> io::Result<()> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        let file = &self.memory.file;
        // SAFETY: replaces a part of the window, which is ours and which nothing points into.
        unsafe { mmap(start as *mut _, bytes as usize, prot, flags, file, offset)? };
        Ok(())
    }
}

/// An unnamed file on a tmpfs of its own with `huge=advise`, as a pool on huge folios has it.
fn huge_file(bytes: u64) -> io::Result<OwnedFd> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "huge", "advise")?;
    fsconfig_set_string(&fs, "size", bytes.to_string())?;
    fsconfig_create(&fs)?;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(openat(&mount, ".", flags, Mode::RUSR | Mode::WUSR)?)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    impl Scattered {
        fn word(&self, address: u64) -> *mut u64 {
            assert!(self.memory.has(address));
            address as *mut u64
        }
    }

    #[test]
    fn gathering_by_hand_shows_the_guest_the_same_bytes() {
        if !::tests::require_userfaultfd() {
            return;
        }
        let scattered = match Scattered::new(2) {
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                return ::tests::skip_unless_refused("a tmpfs needs CAP_SYS_ADMIN");
            }
            result => result.expect("memory on huge folios"),
        };
        for accessed in [Accessed::Yes, Accessed::No] {
            scattered.scatter(accessed).expect("512 mappings a block");
            for page in 0..BLOCK / PAGE {
                let at = scattered.word(scattered.memory.direct + scattered.frame(1, page) + 8);
                // SAFETY: mapped and aligned; nothing else accesses it.
                unsafe { at.write_volatile(page) };
            }
            scattered.gather(1).expect("a block to gather");
            for page in 0..BLOCK / PAGE {
                let at = scattered.word(scattered.memory.window + BLOCK + page * PAGE + 8);
                // SAFETY: as above.
                assert_eq!(unsafe { at.read_volatile() }, page);
            }
        }
    }
}
