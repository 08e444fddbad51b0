//! The service on the real userfaultfd: threads of this test play the vCPU, and access the window as a
//! guest would.
#![allow(unsafe_code, reason = "plays the guest: accesses the window, which nothing else does")]

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use guest_mm::addr::{Gfn, GfnRange, Gpa, Hva, PageSize};
use guest_mm::entry::Marker;
use guest_mm::fault::FaultError;
use guest_mm::pool::{BackingChoice, BackingKind};
use guest_mm::prot::{Access, Prot};

use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm};
use tests::{require_userfaultfd, skip};

const MIB: u64 = 1 << 20;

struct TestGuest {
    guest: Guest,
    stops: Mutex<Receiver<FaultError>>,
    base: Hva,
}

fn add(mm: &GuestMm, bytes: u64, pages: PageSize) -> TestGuest {
    let (tell, stops) = channel();
    let tell = Mutex::new(tell);
    let ram = GfnRange::from_bytes(Gpa::new(0), bytes).unwrap();
    let config = GuestConfig {
        ram: vec![ram],
        policy: FaultPolicy { pages },
        fault_threads: 2,
        on_stop: Box::new(move |error| tell.lock().unwrap().send(error.clone()).unwrap()),
    };
    let guest = mm.add_guest(config).unwrap();
    let base = guest.windows().next().unwrap().1;
    TestGuest { guest, stops: Mutex::new(stops), base }
}

impl TestGuest {
    fn pointer(&self, gpa: u64) -> *mut u64 {
        self.base.add(gpa).as_u64() as *mut u64
    }

    fn load(&self, gpa: u64) -> u64 {
        // SAFETY: the window is mapped for as long as the guest lives; an access that the table does
        // not translate waits for a fault thread.
        unsafe { self.pointer(gpa).read_volatile() }
    }

    fn store(&self, gpa: u64, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.pointer(gpa).write_volatile(value) }
    }

    /// Stores from a thread of its own, which an access that is refused may hold up for a while.
    fn store_aside(&self, gpa: u64) -> std::thread::JoinHandle<()> {
        let at = self.pointer(gpa) as usize;
        // SAFETY: as in `load`; every test joins the thread before the guest ends.
        std::thread::spawn(move || unsafe { (at as *mut u64).write_volatile(1) })
    }

    /// Ends a guest that nothing stopped, its books right.
    fn close(self) {
        let stop = self.stops.lock().unwrap().try_recv();
        assert!(stop.is_err(), "stopped: {}", stop.unwrap());
        self.guest.close().unwrap();
    }

    fn stop(&self) -> FaultError {
        self.stops
            .lock()
            .unwrap()
            .recv_timeout(Duration::from_secs(10))
            .expect("the guest is stopped")
    }
}

fn service(bytes: u64, pages: PageSize) -> GuestMm {
    GuestMm::new(BackingChoice::Auto, bytes, pages).unwrap()
}

fn range(gpa: u64, bytes: u64) -> GfnRange {
    GfnRange::from_bytes(Gpa::new(gpa), bytes).unwrap()
}

#[test]
fn a_first_touch_reads_zero_and_keeps_what_is_written() {
    if !require_userfaultfd() {
        return;
    }
    for pages in [PageSize::Size4K, PageSize::Size2M] {
        let mm = service(8 * MIB, pages);
        let test = add(&mm, 8 * MIB, pages);
        for page in 0..2048u64 {
            assert_eq!(test.load(page * 4096), 0);
            test.store(page * 4096 + 8, page);
        }
        for page in 0..2048u64 {
            assert_eq!(test.load(page * 4096 + 8), page);
        }
        let expected = if pages == PageSize::Size4K { [2048, 0, 0] } else { [0, 4, 0] };
        // A violation is counted when its vCPU runs again already.
        let deadline = Instant::now() + Duration::from_secs(5);
        while test.guest.stats().filled != expected && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let stats = test.guest.stats();
        assert_eq!(stats.filled, expected);
        assert_eq!(stats.resident.frames(), 2048);
        assert_eq!(stats.scattered, 0, "an empty pool has room for every block in place");
        test.guest.audit().unwrap();
        mm.audit().unwrap();
        test.close();
        assert_eq!(mm.usage().free, 2048);
    }
}

#[test]
fn unmapped_memory_reads_zero_again_and_its_frames_are_free() {
    if !require_userfaultfd() {
        return;
    }
    for pages in [PageSize::Size4K, PageSize::Size2M] {
        let mm = service(4 * MIB, pages);
        let test = add(&mm, 4 * MIB, pages);
        for page in 0..1024 {
            test.store(page * 4096, 7);
        }
        assert_eq!(test.guest.unmap(range(0x10_0000, 2 * MIB)).unwrap(), 512);
        test.guest.audit().unwrap();
        assert_eq!(test.load(0xf_f000), 7);
        assert_eq!(test.load(0x10_0000), 0, "the page is a fresh one");
        assert_eq!(test.load(0x2f_f000), 0);
        assert_eq!(test.load(0x30_0000), 7);
        test.guest.audit().unwrap();
        test.close();
    }
}

#[test]
fn a_split_block_keeps_its_bytes_and_its_place() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size2M);
    let test = add(&mm, 4 * MIB, PageSize::Size2M);
    for page in 0..1024 {
        test.store(page * 4096, page);
    }
    assert_eq!(test.guest.split(range(0, 2 * MIB), PageSize::Size4K).unwrap(), 1);
    assert_eq!(test.guest.stats().resident.leaves, [512, 1, 0]);
    assert_eq!(test.guest.memory_map().blocks[0].small, 512);
    assert_eq!(test.guest.memory_map().blocks[0].scattered, 0);
    assert_eq!(test.guest.memory_map().blocks[1].huge, 512);
    for page in 0..1024 {
        assert_eq!(test.load(page * 4096), page);
    }
    test.guest.unmap(range(0x1000, 0x1000)).unwrap();
    assert_eq!(test.load(0x1000), 0);
    assert_eq!(test.guest.stats().scattered, 0, "the freed page stayed with its block");
    test.close();
}

#[test]
fn a_write_to_a_read_only_page_stops_the_guest_and_hangs_nobody() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(2 * MIB, PageSize::Size4K);
    let test = add(&mm, 2 * MIB, PageSize::Size4K);
    test.store(0x3000, 5);
    test.guest.protect(range(0x3000, 0x1000), Prot::R).unwrap();
    assert_eq!(test.load(0x3000), 5);
    let writer = test.store_aside(0x3000);
    assert_eq!(test.stop(), FaultError::ReadOnly { gpa: Gpa::new(0x3000) });
    writer.join().unwrap();
    let mut bytes = [0; 8];
    test.guest.read(Gpa::new(0x3000), &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 5, "the write reached no guest memory");
    test.close();
}

#[test]
fn rights_given_back_let_the_guest_write_again() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size2M);
    let test = add(&mm, 4 * MIB, PageSize::Size2M);
    test.store(0, 1);
    test.guest.protect(range(0x1000, 0x2000), Prot::R).unwrap();
    assert_eq!(
        test.guest.stats().resident.leaves,
        [512, 0, 0],
        "a partly protected block is split"
    );
    test.guest.protect(range(0x1000, 0x2000), Prot::Rwx).unwrap();
    test.store(0x1000, 2);
    assert_eq!(test.load(0x1000), 2);
    test.close();
}

#[test]
fn a_guard_page_stops_the_guest_by_name() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(2 * MIB, PageSize::Size2M);
    let test = add(&mm, 2 * MIB, PageSize::Size2M);
    test.guest.mark(range(0x5000, 0x1000), Marker::Guard).unwrap();
    test.store(0x4000, 1);
    test.store(0x6000, 1);
    let toucher = test.store_aside(0x5008);
    let stop = test.stop();
    assert_eq!(stop.to_string(), "write of the guard page at guest-physical 0x5008");
    toucher.join().unwrap();
    assert_eq!(test.guest.memory_map().blocks[0].guard, 1);
    test.close();
}

#[test]
fn an_exhausted_pool_stops_the_guest_that_asked_and_no_other() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size4K);
    let greedy = add(&mm, 16 * MIB, PageSize::Size4K);
    let modest = add(&mm, 2 * MIB, PageSize::Size4K);
    for page in 0..16 {
        modest.store(page * 4096, 100 + page);
    }
    // 1024 frames less the 16 of the other guest, whose reservation is broken up for this.
    for page in 0..1008 {
        greedy.store(page * 4096, page);
    }
    let toucher = greedy.store_aside(1008 * 4096);
    let stop = greedy.stop();
    assert!(matches!(stop, FaultError::Exhausted { access: Access::Write, .. }), "{stop}");
    toucher.join().unwrap();
    for page in 0..1008 {
        assert_eq!(greedy.load(page * 4096), page);
    }
    for page in 0..16 {
        assert_eq!(modest.load(page * 4096), 100 + page);
    }
    assert!(greedy.guest.stats().scattered > 0, "the last frames come from all over the pool");
    mm.audit().unwrap();
    greedy.close();
    for page in 16..512 {
        modest.store(page * 4096, page);
    }
    mm.audit().unwrap();
    modest.close();
}

#[test]
fn several_vcpus_touch_the_same_blocks_and_lose_nothing() {
    if !require_userfaultfd() {
        return;
    }
    for pages in [PageSize::Size4K, PageSize::Size2M] {
        let mm = service(16 * MIB, pages);
        let test = add(&mm, 16 * MIB, pages);
        std::thread::scope(|scope| {
            for vcpu in 0..4u64 {
                let test = &test;
                scope.spawn(move || {
                    for page in 0..4096 {
                        test.store(page * 4096 + vcpu * 8, page + vcpu);
                    }
                });
            }
        });
        for page in 0..4096 {
            for vcpu in 0..4 {
                assert_eq!(test.load(page * 4096 + vcpu * 8), page + vcpu);
            }
        }
        mm.audit().unwrap();
        test.close();
    }
}

#[test]
fn memory_is_taken_away_under_a_running_guest_and_the_books_stay_right() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let test = add(&mm, 8 * MIB, PageSize::Size4K);
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            for round in 1..6u64 {
                for page in 0..2048 {
                    // Either what was written before or, if it was taken away since, zero.
                    let found = test.load(page * 4096);
                    assert!(found < round, "{found} in round {round}");
                    test.store(page * 4096, round);
                }
            }
        });
        let mut part = 0;
        while !vcpu.is_finished() {
            test.guest.unmap(range(part * 0x3000, 0x5000)).unwrap();
            part = (part + 17) % 600;
        }
        vcpu.join().unwrap();
    });
    test.guest.audit().unwrap();
    mm.audit().unwrap();
    test.close();
}

#[test]
fn a_boot_image_is_written_before_the_guest_runs() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    assert_eq!(test.guest.populate(range(0x10_0000, 0x30_0000 - 0x10_0000)).unwrap(), 512);
    let image: Vec<u8> = (0..0x20_0000u32).map(|i| i as u8).collect();
    test.guest.write(Gpa::new(0x10_0000), &image).unwrap();
    assert_eq!(test.load(0x10_0100), 0x0706_0504_0302_0100);
    assert_eq!(test.guest.stats().violations(), 0, "what is populated does not fault");
    assert!(test.guest.write(Gpa::new(0), &[1]).is_err());
    test.close();
}

#[test]
fn a_gib_is_filled_and_split_in_one_piece() {
    if !require_userfaultfd() {
        return;
    }
    const GIB: u64 = 1 << 30;
    let mm = service(GIB, PageSize::Size1G);
    let test = add(&mm, GIB, PageSize::Size1G);
    test.store(GIB / 2, 3);
    assert_eq!(test.guest.stats().resident.leaves, [0, 0, 1]);
    assert_eq!(test.guest.memory_map().blocks[511].giant, 512);
    test.guest.unmap(range(GIB / 2 + 0x1000, 0x1000)).unwrap();
    assert_eq!(test.guest.stats().resident.leaves, [511, 511, 0]);
    assert_eq!(test.load(GIB / 2), 3);
    test.guest.audit().unwrap();
    test.close();
}

#[test]
fn hugetlb_pages_are_mapped_whole() {
    if !require_userfaultfd() {
        return;
    }
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free: u64 = free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if free < 2 {
        skip("fewer than 2 free huge pages (vm.nr_hugepages)");
        return;
    }
    let choice = BackingChoice::Only(BackingKind::Hugetlb);
    let mm = GuestMm::new(choice, 4 * MIB, PageSize::Size2M).unwrap();
    let test = add(&mm, 4 * MIB, PageSize::Size2M);
    assert_eq!(test.load(3 * MIB), 0);
    test.store(3 * MIB, 9);
    test.guest.unmap(range(2 * MIB, 2 * MIB)).unwrap();
    assert_eq!(test.load(3 * MIB), 0);
    test.close();
}

#[test]
fn ram_that_starts_inside_a_block_is_refused() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(2 * MIB, PageSize::Size4K);
    let ram = vec![GfnRange::new(Gfn::new(1), 1).unwrap()];
    let config = GuestConfig {
        ram,
        policy: FaultPolicy { pages: PageSize::Size4K },
        fault_threads: 1,
        on_stop: Box::new(|_| {}),
    };
    let error = mm.add_guest(config).unwrap_err();
    assert_eq!(error.to_string(), "RAM at 0x1000..0x2000 does not start at a multiple of 2 MiB");
}

/// `Level::index` takes an address modulo the tree, so an address past it would alias low memory.
#[test]
fn an_address_past_the_tree_is_not_low_memory() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(2 * MIB, PageSize::Size4K);
    let test = add(&mm, 2 * MIB, PageSize::Size4K);
    test.store(0x1000, 7);
    let alias = Gpa::new((1 << 48) + 0x1000);
    assert!(test.guest.write(alias, &[1]).is_err());
    assert!(test.guest.read(alias, &mut [0]).is_err());
    assert!(test.guest.fault(alias, Access::Read).is_err());
    assert!(test.guest.write(Gpa::new(u64::MAX), &[1, 2]).is_err());
    assert_eq!(test.load(0x1000), 7);
    test.close();
}

#[test]
fn ram_that_overlaps_is_refused() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size4K);
    let config = GuestConfig {
        ram: vec![range(0, 4 * MIB), range(2 * MIB, 2 * MIB)],
        policy: FaultPolicy { pages: PageSize::Size4K },
        fault_threads: 1,
        on_stop: Box::new(|_| {}),
    };
    let error = mm.add_guest(config).unwrap_err();
    assert_eq!(error.to_string(), "RAM at 0x0..0x400000 and at 0x200000..0x400000 overlaps");
}

#[test]
fn memory_that_is_no_ram_cannot_be_marked() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(2 * MIB, PageSize::Size4K);
    let test = add(&mm, 2 * MIB, PageSize::Size4K);
    assert!(test.guest.mark(range(2 * MIB, 0x1000), Marker::Guard).is_err());
    test.close();
}

/// A guard page is no page in use: the block around it still reserves its place in the pool.
#[test]
fn a_block_with_a_guard_page_lies_in_order() {
    if !require_userfaultfd() {
        return;
    }
    for pages in [PageSize::Size4K, PageSize::Size2M] {
        let mm = service(2 * MIB, pages);
        let test = add(&mm, 2 * MIB, pages);
        test.guest.mark(range(0x5000, 0x1000), Marker::Guard).unwrap();
        for page in (0..512).filter(|page| *page != 5) {
            test.store(page * 4096, page);
        }
        assert_eq!(test.guest.stats().scattered, 0);
        test.close();
    }
}

/// The kernel rounds a part of a hugetlb page down to nothing and reports success: the guest would have
/// kept memory that was about to be another's.
#[test]
fn a_part_of_a_hugetlb_page_cannot_be_taken_away() {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free: u64 = free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if free < 2 {
        skip("fewer than 2 free huge pages (vm.nr_hugepages)");
        return;
    }
    let choice = BackingChoice::Only(BackingKind::Hugetlb);
    let mm = GuestMm::new(choice, 4 * MIB, PageSize::Size2M).unwrap();
    let test = add(&mm, 4 * MIB, PageSize::Size2M);
    test.store(0, 9);
    assert!(test.guest.unmap(range(0, 0x1000)).is_err());
    assert!(test.guest.protect(range(0, 0x1000), Prot::R).is_err());
    assert!(test.guest.split(range(0, 2 * MIB), PageSize::Size4K).is_err());
    assert_eq!(test.load(0), 9);
    test.close();
}

/// Half of a block that the host maps huge is protected, taken away and filled again; the other half keeps
/// its bytes.
#[test]
fn an_open_block_is_changed_in_part() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size2M);
    let test = add(&mm, 4 * MIB, PageSize::Size2M);
    for page in 0..1024 {
        test.store(page * 4096, page + 1);
    }
    let half = range(0, MIB);
    test.guest.protect(half, Prot::R).unwrap();
    for page in 0..1024 {
        assert_eq!(test.load(page * 4096), page + 1);
    }
    test.guest.protect(half, Prot::Rwx).unwrap();
    test.store(0, 77);
    assert_eq!(test.guest.unmap(half).unwrap(), 256);
    test.guest.audit().unwrap();
    for page in 0..1024 {
        let expected = if page < 256 { 0 } else { page + 1 };
        assert_eq!(test.load(page * 4096), expected);
    }
    test.guest.audit().unwrap();
    test.close();
}
