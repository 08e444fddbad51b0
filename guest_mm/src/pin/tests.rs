//! What the fast path does not do.
#![allow(unsafe_code, reason = "counts allocations, and forbids a thread system calls")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::addr::{BlockNo, Gfn, GfnRange, GpaRange, PageSize};
use crate::fault::populate;
use crate::geometry::{FRAME_BYTES, Level};
use crate::mirrors::fake::Fake;
use crate::pool::{BackingChoice, BackingKind, Pool};
use crate::prot::Access;
use crate::protocol::Sound;
use crate::space::{AddressSpace, FaultPolicy, RamRegion};
use crate::sync::Arc;

use super::{PinBatch, pin};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread asks it for.
struct Counting;

// SAFETY: every call is passed on as it is; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's obligations are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PAGES: u64 = 1024;

/// Block 0 by 4 KiB, block 1 by 2 MiB.
fn space() -> AddressSpace<Sound> {
    let range = GfnRange::new(Gfn::new(0), PAGES).unwrap();
    let choice = BackingChoice::Only(BackingKind::Memfd);
    let pool = Pool::new(choice, 2 << 21, PageSize::Size2M).unwrap();
    let ram = vec![RamRegion { range, origin: BlockNo::new(0), over: None }];
    let policy = FaultPolicy { pages: PageSize::Size4K };
    let mut space: AddressSpace<Sound> =
        AddressSpace::new(ram, Arc::new(pool), Box::new(Fake::new()), policy, None);
    populate(&space, GfnRange::entry(Gfn::new(0), Level::PD)).unwrap();
    space.policy.pages = PageSize::Size2M;
    populate(&space, GfnRange::entry(Gfn::new(512), Level::PD)).unwrap();
    space
}

/// The locks of all tables, and the pool's, are held by one thread while another, which may make no system
/// call, pins pages, a range and a batch again and again. A lock that is taken would have to wait, which
/// is a system call; a system call ends the process.
#[test]
fn the_fast_path_neither_allocates_nor_locks_nor_calls_the_system() {
    let space = std::sync::Arc::new(space());
    let shared = std::sync::Arc::new([const { AtomicU64::new(0) }; 2]);
    let locks = [Level::ROOT, Level::new(3), Level::PD, Level::PT]
        .map(|level| space.table.cursor_on(Gfn::new(0), level));
    let books = space.pool.hold_books();
    let thread = {
        let (space, shared) = (std::sync::Arc::clone(&space), std::sync::Arc::clone(&shared));
        std::thread::spawn(move || {
            let mut batch = PinBatch::new(&space);
            batch.reserve(64, 64);
            // What a thread does once: its number, its place among the epochs.
            pins(&space, &mut batch, 1);
            // SAFETY: `prctl` with integer arguments; it touches no memory.
            let strict = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
            assert_eq!(strict, 0, "this thread cannot be forbidden system calls");
            let before = ALLOCATIONS.get();
            pins(&space, &mut batch, 2000);
            shared[1].store(ALLOCATIONS.get() - before, Relaxed);
            shared[0].store(1, Release);
            // To leave the ordinary way takes system calls; what it holds stays with the process.
            // SAFETY: ends this thread alone, which nobody joins.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        })
    };
    while shared[0].load(Acquire) == 0 && !thread.is_finished() {
        std::thread::yield_now();
    }
    assert_eq!(shared[0].load(Acquire), 1, "the thread came to its end");
    assert_eq!(shared[1].load(Relaxed), 0, "the fast path allocates");
    drop((locks, books));
    std::mem::forget(thread);
}

fn pins(space: &AddressSpace<Sound>, batch: &mut PinBatch<'_, Sound>, times: u64) {
    let page = |i: u64| GpaRange::new(Gfn::new(i * 37 % PAGES).gpa(), FRAME_BYTES).unwrap();
    for i in 0..times {
        drop(pin(space, page(i), Access::Write, None).unwrap());
        let in_order = GpaRange::from(GfnRange::new(Gfn::new(512), 512).unwrap());
        drop(pin(space, in_order, Access::Read, None).unwrap());
        batch.pin((0..64).map(|j| (page(i + j), Access::Write))).unwrap();
        batch.unpin();
    }
}
