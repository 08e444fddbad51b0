//! What is refused, what stops a guest, and that it stops no other.

use guest_mm::addr::{Gfn, GfnRange, Gpa, PageSize};
use guest_mm::entry::Marker;
use guest_mm::fault::FaultError;
use guest_mm::place::{Content, PlaceError};
use guest_mm::pool::{BackingChoice, BackingKind};
use guest_mm::prot::{Access, Prot};
use guest_mm::{FaultPolicy, GuestConfig, GuestMm};
use tests::{require_userfaultfd, skip};

use super::{MIB, add, range, service};

/// A service on this many hugetlb pages, or none, said aloud, where the host has not set them aside.
pub(super) fn on_huge_pages(pages: u64) -> Option<GuestMm> {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free: u64 = free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if free < pages {
        skip(&format!("fewer than {pages} free huge pages (vm.nr_hugepages)"));
        return None;
    }
    let choice = BackingChoice::Only(BackingKind::Hugetlb);
    Some(GuestMm::new(choice, pages * 2 * MIB, PageSize::Size2M).unwrap())
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
fn hugetlb_pages_are_mapped_whole() {
    if !require_userfaultfd() {
        return;
    }
    let Some(mm) = on_huge_pages(2) else { return };
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
        over: Vec::new(),
        on_missing: None,
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
        over: Vec::new(),
        on_missing: None,
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

/// The kernel rounds a part of a hugetlb page down to nothing and reports success: the guest would have
/// kept memory that was about to be another's.
#[test]
fn a_part_of_a_hugetlb_page_cannot_be_taken_away() {
    let Some(mm) = on_huge_pages(2) else { return };
    let test = add(&mm, 4 * MIB, PageSize::Size2M);
    test.store(0, 9);
    assert!(test.guest.unmap(range(0, 0x1000)).is_err());
    assert!(test.guest.protect(range(0, 0x1000), Prot::R).is_err());
    assert!(test.guest.split(range(0, 2 * MIB), PageSize::Size4K).is_err());
    assert_eq!(test.load(0), 9);
    test.close();
}

/// A pool whose pages cannot be divided is exhausted when no whole page is left.
#[test]
fn an_exhausted_hugetlb_pool_says_so() {
    let Some(mm) = on_huge_pages(1) else { return };
    let test = add(&mm, 4 * MIB, PageSize::Size2M);
    test.store(0, 1);
    let toucher = test.store_aside(2 * MIB);
    assert!(matches!(test.stop(), FaultError::Exhausted { .. }));
    toucher.join().unwrap();
    assert_eq!(test.load(0), 1);
    test.close();
}

/// Where no block is whole any more, a guest that fills blocks gets the page that it touches; the rest of the
/// block is not worth breaking up what another guest reserves.
#[test]
fn the_rest_of_a_block_is_not_taken_from_others() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size2M);
    let small = add(&mm, 2 * MIB, PageSize::Size4K);
    small.store(0, 1);
    let large = add(&mm, 4 * MIB, PageSize::Size2M);
    large.store(0, 1);
    large.store(2 * MIB, 1);
    assert_eq!(large.guest.stats().resident.leaves, [1, 1, 0]);
    mm.audit().unwrap();
    large.close();
    small.close();
}

/// What a refused access is given cannot be registered, and it lay between two scattered pages that were, in one
/// call with all that is between them.
#[test]
fn a_refused_access_between_scattered_pages_does_not_keep_the_guest_up() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size4K);
    let test = add(&mm, 6 * MIB, PageSize::Size4K);
    test.guest.mark(range(4 * MIB + 0x1000, 0x1000), Marker::Guard).unwrap();
    // The first two reserve all of the pool; the others get what can be spared.
    for gpa in [0, 2 * MIB, 4 * MIB, 4 * MIB + 0x3000] {
        test.store(gpa, 1);
    }
    let toucher = test.store_aside(4 * MIB + 0x1000);
    assert!(matches!(test.stop(), FaultError::Marked { .. }));
    toucher.join().unwrap();
    test.close();
}

/// The attempt left an empty page table in the place of the page, which nothing could be mapped to any more.
#[test]
fn a_hugetlb_page_that_was_not_to_be_had_is_filled_later() {
    let Some(mm) = on_huge_pages(1) else { return };
    let test = add(&mm, 4 * MIB, PageSize::Size2M);
    test.store(0, 1);
    assert!(test.guest.populate(range(2 * MIB, 2 * MIB)).is_err());
    test.guest.unmap(range(0, 2 * MIB)).unwrap();
    assert_eq!(test.load(2 * MIB), 0);
    test.close();
}

/// A page of 4 KiB was published in a table that such a pool cannot show, and who touched its block then waited for ever.
#[test]
fn a_page_cannot_be_placed_in_a_hugetlb_pool() {
    let Some(mm) = on_huge_pages(1) else { return };
    let test = add(&mm, 2 * MIB, PageSize::Size2M);
    test.guest.mark(range(0, 2 * MIB), Marker::Missing).unwrap();
    assert!(matches!(test.guest.place(Gpa::new(0), Content::Zero), Err(PlaceError::CutsPage(_))));
    test.guest.unmap(range(0, 2 * MIB)).unwrap();
    assert_eq!(test.load(0), 0);
    test.close();
}

#[test]
fn nothing_is_filled_behind_the_end_of_ram() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let test = add(&mm, 2 * MIB + 0x1000, PageSize::Size4K);
    assert_eq!(test.guest.populate(range(0, 4 * MIB)).unwrap(), 513);
    test.close();
    mm.audit().unwrap();
}
