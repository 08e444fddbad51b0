//! The heap: powers of two, each with a list of what was given back, over memory that is taken from its start upwards.
//!
//! Nothing is ever split or joined, so a block that was given back serves its own size only. The drivers ask for a handful of
//! sizes over and over again.

use core::alloc::Layout;
use core::ptr;

/// The least size: a block that is free holds the address of the next one.
const LEAST: usize = 16;
/// Sizes from 16 bytes to 1 GiB.
const CLASSES: usize = 27;
/// The largest alignment, that of every block from this size on.
const PAGE: usize = 4096;

/// Memory to give away.
pub struct Heap {
    /// For each size the free block that was given back last; 0 if there is none.
    free: [usize; CLASSES],
    /// What lies from here on was never given away.
    next: usize,
    end: usize,
}

impl Heap {
    /// Without memory: it refuses everything.
    pub const fn empty() -> Heap {
        Heap { free: [0; CLASSES], next: 0, end: 0 }
    }

    /// A heap over the memory from `start` to `end`.
    ///
    /// # Safety
    /// 1. The memory is mapped and writable, and `start` is not 0.
    /// 2. It is used through this heap only, as long as that or anything taken from it is used.
    pub unsafe fn over(start: usize, end: usize) -> Heap {
        Heap { free: [0; CLASSES], next: start, end }
    }

    /// A block for `layout`, or null.
    pub fn take(&mut self, layout: Layout) -> *mut u8 {
        let Some(class) = class(layout) else {
            return ptr::null_mut();
        };
        let head = self.free[class];
        if head != 0 {
            // SAFETY: (1) a free block of this heap, that `give_back` wrote the next one's address to.
            self.free[class] = unsafe { (head as *const usize).read() };
            return head as *mut u8;
        }
        let size = LEAST << class;
        let block = self.next.next_multiple_of(size.min(PAGE));
        match block.checked_add(size) {
            Some(next) if next <= self.end => {
                self.next = next;
                block as *mut u8
            }
            _ => ptr::null_mut(),
        }
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// 1. [`take`](Self::take) of this heap gave `block`, for `layout`.
    /// 2. Nobody uses it any more.
    pub unsafe fn give_back(&mut self, block: *mut u8, layout: Layout) {
        let Some(class) = class(layout) else { return };
        // SAFETY: (1) the caller's (1): at least 16 bytes, aligned to 16; (2) the caller's (2).
        unsafe { block.cast::<usize>().write(self.free[class]) };
        self.free[class] = block as usize;
    }
}

/// The index of the size that serves `layout`.
fn class(layout: Layout) -> Option<usize> {
    if layout.align() > PAGE {
        return None;
    }
    let size = layout.size().max(layout.align()).max(LEAST).checked_next_power_of_two()?;
    let class = (size / LEAST).trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

#[cfg(not(test))]
pub use global::init;

#[cfg(not(test))]
mod global {
    use core::alloc::{GlobalAlloc, Layout};
    use core::cell::UnsafeCell;
    use core::sync::atomic::{AtomicBool, Ordering};

    use super::Heap;
    use crate::boot_params::Boot;
    use crate::{paging, ram};

    struct Locked {
        lock: AtomicBool,
        heap: UnsafeCell<Heap>,
    }

    #[global_allocator]
    static HEAP: Locked =
        Locked { lock: AtomicBool::new(false), heap: UnsafeCell::new(Heap::empty()) };

    /// Gives the heap the largest range of RAM above the image. Called once, by a guest that uses no
    /// [`Pages`](crate::ram::Pages).
    pub fn init(boot: &Boot) {
        let Some(range) = ram::largest_above_image(boot) else { return };
        paging::reach(range);
        // SAFETY: (1) mapped just now, and above the image; (2) RAM that no Rust object lives in, and that this guest uses
        // through the heap only.
        let heap = unsafe { Heap::over(range.start as usize, range.end as usize) };
        HEAP.with(|old| *old = heap);
    }

    impl Locked {
        fn with<T>(&self, work: impl FnOnce(&mut Heap) -> T) -> T {
            // Acquire pairs with the release below: one CPU at a time, each after what the last one did.
            while self.lock.swap(true, Ordering::Acquire) {
                core::hint::spin_loop();
            }
            // SAFETY: the lock is held, and `work` cannot come back here.
            let result = work(unsafe { &mut *self.heap.get() });
            self.lock.store(false, Ordering::Release);
            result
        }
    }

    // SAFETY: the heap is reached under the lock only.
    unsafe impl Sync for Locked {}

    // SAFETY: blocks are as large and as aligned as their layout says (`class`), and none is given twice.
    unsafe impl GlobalAlloc for Locked {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            self.with(|heap| heap.take(layout))
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: (1), (2) the caller's promises.
            self.with(|heap| unsafe { heap.give_back(block, layout) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// A heap over `pages` pages, and what keeps them alive.
    fn heap(pages: usize) -> (Heap, Vec<u8>) {
        let memory = vec![0u8; (pages + 1) * PAGE];
        let start = (memory.as_ptr() as usize).next_multiple_of(PAGE);
        // SAFETY: (1), (2) the vector's memory, which nobody looks at.
        (unsafe { Heap::over(start, start + pages * PAGE) }, memory)
    }

    #[test]
    fn blocks_are_aligned_and_do_not_overlap() {
        let (mut heap, _memory) = heap(16);
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for (size, align) in [(1, 1), (24, 8), (4096, 1), (3, 2), (100, 64), (8192, 4096), (16, 16)]
        {
            let at = heap.take(layout(size, align)) as usize;
            assert!(at != 0 && at.is_multiple_of(align), "{size} {align}: {at:#x}");
            assert!(taken.iter().all(|&(start, end)| at + size <= start || at >= end));
            taken.push((at, at + size));
        }
        assert!(
            (heap.take(layout(PAGE, 1)) as usize).is_multiple_of(PAGE),
            "what is a page long is a page"
        );
    }

    #[test]
    fn what_is_given_back_is_given_again_and_what_is_not_there_is_refused() {
        let (mut heap, _memory) = heap(2);
        let (page, small) = (layout(PAGE, PAGE), layout(20, 4));
        let first = heap.take(page);
        let second = heap.take(page);
        assert!(!first.is_null() && !second.is_null() && first != second);
        assert!(heap.take(small).is_null() && heap.take(page).is_null());
        // SAFETY: (1), (2) taken above, with this layout, and not used.
        unsafe { heap.give_back(first, page) };
        assert!(heap.take(small).is_null(), "a page serves pages only");
        assert_eq!(heap.take(page), first);
        assert!(Heap::empty().take(small).is_null());
        assert!(heap.take(layout(1, 2 * PAGE)).is_null());
        assert!(heap.take(layout(usize::MAX >> 1, 1)).is_null());
    }
}
