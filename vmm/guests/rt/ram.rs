//! The RAM that a guest may use as it likes: what e820 lists above the guest's own image.

use core::sync::atomic::AtomicU64;

use crate::boot_params::{Boot, Range};
use crate::paging;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// 64-bit words of a page.
pub const WORDS: usize = 512;

const MAX_RUNS: usize = 16;

unsafe extern "C" {
    /// Page-aligned end of the image, from `link.ld`.
    static image_end: u8;
}

/// Where the guest's own image ends.
pub fn image_limit() -> u64 {
    (&raw const image_end) as u64
}

/// The largest range of whole pages of RAM above the image. Not yet mapped where it lies above 4 GiB.
pub fn largest_above_image(boot: &Boot) -> Option<Range> {
    let pages = |ram: Range| Range {
        start: ram.start.max(image_limit()).next_multiple_of(PAGE),
        end: ram.end & !(PAGE - 1),
    };
    let free = |range: &Range| !boot.occupied().iter().any(|o| o.overlaps(*range));
    boot.ram().map(pages).filter(free).max_by_key(|range| range.len()).filter(|r| !r.is_empty())
}

#[derive(Clone, Copy, Default)]
struct Run {
    start: u64,
    pages: u64,
}

/// Pages by index, evenly spaced over the RAM above the image, mapped.
pub struct Pages {
    runs: [Run; MAX_RUNS],
    step: u64,
    len: u64,
}

impl Pages {
    /// Every page whose distance from the start of its range of RAM is a multiple of `step`, in the first `limit` bytes.
    pub fn above_image(boot: &Boot, step: u64, limit: u64) -> Pages {
        assert!(step >= PAGE && step.is_multiple_of(PAGE), "pages cannot be {step} bytes apart");
        let mut pages = Pages { runs: [Run::default(); MAX_RUNS], step, len: 0 };
        let mut left = limit;
        let mut slots = pages.runs.iter_mut();
        for ram in boot.ram() {
            let start = ram.start.max(image_limit()).next_multiple_of(PAGE);
            let end = (ram.end & !(PAGE - 1)).min(start.saturating_add(left & !(PAGE - 1)));
            let range = Range { start, end };
            if range.is_empty() {
                continue;
            }
            assert!(
                !boot.occupied().iter().any(|o| o.overlaps(range)),
                "boot_params and the command line must lie below the image"
            );
            left -= range.len();
            let Some(run) = slots.next() else {
                panic!("e820 lists more than {MAX_RUNS} ranges of RAM above the image")
            };
            paging::reach(range);
            *run = Run { start, pages: range.len().div_ceil(step) };
            pages.len += run.pages;
        }
        pages
    }

    /// Every page of `range`, if that is page-aligned, not empty, and RAM above the image.
    pub fn within(boot: &Boot, range: Range) -> Option<Pages> {
        let aligned = [range.start, range.end].iter().all(|at| at.is_multiple_of(PAGE));
        let there = boot.ram().any(|ram| ram.start <= range.start && range.end <= ram.end);
        let free = range.start >= image_limit()
            && !boot.occupied().iter().any(|occupied| occupied.overlaps(range));
        if !aligned || range.is_empty() || !there || !free {
            return None;
        }
        paging::reach(range);
        let len = range.len() / PAGE;
        let mut runs = [Run::default(); MAX_RUNS];
        runs[0] = Run { start: range.start, pages: len };
        Some(Pages { runs, step: PAGE, len })
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// GPA of page `index`.
    pub fn address(&self, index: u64) -> u64 {
        let mut left = index;
        for run in &self.runs {
            if left < run.pages {
                return run.start + left * self.step;
            }
            left -= run.pages;
        }
        panic!("page {index} of {}", self.len)
    }

    /// Page `index` as words, which all CPUs may touch at any time.
    pub fn words(&self, index: u64) -> &'static [AtomicU64; WORDS] {
        let page = self.address(index) as *const [AtomicU64; WORDS];
        // SAFETY: (1) mapped, writable and page-aligned by construction; (2) RAM above the image, that no Rust object lives
        // in; (3) atomics, so shared references are all that is ever needed, and a word changed by a faulty monitor is read
        // as what it is.
        unsafe { &*page }
    }
}
