//! What the guest finds in its memory, and where it lies.

use std::time::{Duration, Instant};

use guest_mm::GuestMm;
use guest_mm::addr::{Gpa, PageSize};
use guest_mm::entry::Marker;
use guest_mm::pool::{BackingChoice, BackingKind};
use guest_mm::prot::Prot;
use tests::require_userfaultfd;

use super::{MIB, add, range, service};

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

#[test]
fn memory_that_is_there_before_it_is_needed_goes_back_where_nobody_needs_it() {
    if !require_userfaultfd() {
        return;
    }
    for kind in [BackingKind::Memfd, BackingKind::Tmpfs] {
        let mm = GuestMm::new(BackingChoice::Only(kind), 8 * MIB, PageSize::Size4K).unwrap();
        let test = add(&mm, 6 * MIB, PageSize::Size4K);
        let host = || mm.usage().host_bytes;
        test.store(0, 1);
        let before = host();
        assert_eq!(test.guest.back(|| false).blocks(), 0);
        let backed = test.guest.back(|| true);
        assert_eq!((backed.blocks(), host()), (2, before + 4 * MIB));
        test.store(2 * MIB, 2);
        drop(backed);
        assert_eq!(
            host(),
            before + 2 * MIB,
            "the block that nobody has touched is the host's again"
        );
        assert_eq!([0, 2 * MIB, 4 * MIB].map(|at| test.load(at)), [1, 2, 0]);
        test.close();
        mm.audit().unwrap();
    }
}
