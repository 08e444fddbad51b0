//! Guest memory as a vCPU sees it: through the window, whose misses fault threads serve.
#![allow(
    unsafe_code,
    reason = "plays a vCPU: accesses the window, which nothing else in the process does"
)]

use guest_mm::Guest;
use guest_mm::addr::{Gpa, Hva};

use super::engine::Chosen;

/// The window of a guest whose RAM is one range from address 0 on.
#[derive(Debug)]
pub(super) struct Window {
    base: Hva,
    bytes: u64,
}

impl Window {
    /// That of `guest`, which has to outlive it.
    pub(super) fn of(guest: &Guest<Chosen>) -> Window {
        let (range, base) = guest.windows().next().expect("the guest has RAM");
        assert_eq!(range.start().as_u64(), 0, "its RAM begins at 0");
        Window { base, bytes: range.frames() * 4096 }
    }

    /// The vCPU's load.
    pub(super) fn load(&self, gpa: Gpa) -> u64 {
        // SAFETY: `word` has checked 1 and 2.
        // 3. Others may write the word at any time; a volatile access of an aligned word does not tear.
        unsafe { self.word(gpa).read_volatile() }
    }

    /// The vCPU's store.
    pub(super) fn store(&self, gpa: Gpa, value: u64) {
        // SAFETY: as in `load`; no reference of Rust leads to guest memory.
        unsafe { self.word(gpa).write_volatile(value) }
    }

    /// Where the word at `gpa` is: (1) inside of the window, which is mapped for as long as the guest lives, and (2) aligned.
    fn word(&self, gpa: Gpa) -> *mut u64 {
        let at = gpa.as_u64();
        assert!(at.is_multiple_of(8) && at < self.bytes, "{gpa} is no word of RAM");
        self.base.add(at).as_u64() as *mut u64
    }
}
