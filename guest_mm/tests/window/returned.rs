//! Memory that the guest gives back, and takes again.

use std::time::{Duration, Instant};

use guest_mm::addr::{Gpa, PageSize};
use guest_mm::collapse::{CollapsePolicy, Skip};
use guest_mm::entry::Marker;
use guest_mm::place::Placed;
use guest_mm::pool::{BackingChoice, BackingKind};
use guest_mm::prot::Access;
use guest_mm::unmap::{GiveBackError, GivenBack};
use guest_mm::{CollapserConfig, GuestMm};
use tests::require_userfaultfd;
use vm_memory::Bytes;

use super::collapse::bytes;
use super::limits::on_huge_pages;
use super::{MIB, TestGuest, add, range};

const PAGE: u64 = 4096;

fn pool(kind: BackingKind, mib: u64) -> GuestMm {
    GuestMm::new(BackingChoice::Only(kind), mib * MIB, PageSize::Size4K).unwrap()
}

/// Pools of small folios and of huge ones.
fn pools(mib: u64) -> [GuestMm; 2] {
    [BackingKind::Memfd, BackingKind::Tmpfs].map(|kind| pool(kind, mib))
}

/// Writes its own address to every page of the first `mib` MiB.
fn fill(test: &TestGuest, mib: u64) {
    (0..mib * MIB).step_by(PAGE as usize).for_each(|at| test.store(at, at + 1));
}

fn returned(test: &TestGuest) -> u64 {
    test.guest.stats().resident.returned
}

#[test]
fn what_is_given_back_goes_to_the_host_and_reads_zero_when_it_is_touched() {
    if !require_userfaultfd() {
        return;
    }
    for pages in [PageSize::Size4K, PageSize::Size2M] {
        for mm in pools(16) {
            let test = add(&mm, 16 * MIB, pages);
            fill(&test, 16);
            let before = mm.usage().host_bytes;
            assert!(before >= 16 * MIB, "{before}");
            let given = test.guest.give_back(range(4 * MIB, 8 * MIB)).unwrap();
            let expected = GivenBack { pages: 2048, returned_bytes: 8 * MIB, ..Default::default() };
            assert_eq!(given, expected);
            let usage = mm.usage();
            assert_eq!(before - usage.host_bytes, 8 * MIB, "the host has it again");
            assert_eq!((usage.free + usage.reserved, usage.returned_bytes), (2048, 8 * MIB));
            assert_eq!(returned(&test), 2048);
            assert_eq!(test.guest.stats().resident.markers[3], 4, "an entry a block");
            assert!(test.guest.memory_map().blocks[2..6].iter().all(|block| block.returned == 512));
            mm.audit().unwrap();
            assert_eq!(test.load(4 * MIB + 5 * PAGE), 0);
            test.store(6 * MIB, 3);
            assert_eq!(returned(&test), 2046, "a touch takes its page alone");
            assert_eq!([test.load(6 * MIB), test.load(4 * MIB - PAGE)], [3, 4 * MIB - PAGE + 1]);
            mm.audit().unwrap();
            test.close();
            assert_eq!(mm.usage().free, 4096);
        }
    }
}

#[test]
fn a_huge_page_is_split_and_the_rest_of_it_keeps_its_bytes() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(8) {
        let test = add(&mm, 4 * MIB, PageSize::Size2M);
        fill(&test, 4);
        assert_eq!(test.guest.stats().resident.leaves[1], 2);
        let before = mm.usage().host_bytes;
        // From the middle of one block to the middle of the next.
        let given = test.guest.give_back(range(MIB, 2 * MIB)).unwrap();
        assert_eq!((given.pages, given.returned_bytes), (512, 2 * MIB));
        assert_eq!(before - mm.usage().host_bytes, 2 * MIB);
        assert_eq!(test.guest.stats().resident.leaves, [512, 0, 0]);
        for at in (0..MIB).chain(3 * MIB..4 * MIB).step_by(PAGE as usize) {
            assert_eq!(test.load(at), at + 1);
        }
        mm.audit().unwrap();
        assert_eq!([test.load(MIB), test.load(3 * MIB - PAGE)], [0, 0]);
        assert_eq!(test.guest.stats().scattered, 0, "it came back in its place");
        test.close();
    }
}

#[test]
fn pages_given_back_one_by_one_end_as_one_entry_and_a_free_block() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(4) {
        let test = add(&mm, 4 * MIB, PageSize::Size4K);
        fill(&test, 2);
        let tables = test.guest.stats().resident.tables;
        for page in 0..512 {
            test.guest.give_back(range(page * PAGE, PAGE)).unwrap();
        }
        let resident = test.guest.stats().resident;
        assert_eq!((resident.markers[3], resident.returned), (1, 512));
        assert_eq!(resident.tables[0], tables[0] - 1, "no page table is left for it");
        let usage = mm.usage();
        assert_eq!((usage.free, usage.reserved, usage.host_bytes), (1024, 0, 0));
        assert_eq!(test.guest.stats().balloon.given_back, 512);
        assert_eq!(test.guest.stats().balloon.returned_bytes, 2 * MIB);
        test.close();
    }
}

#[test]
fn no_collapse_undoes_what_was_given_back() {
    if !require_userfaultfd() {
        return;
    }
    for mut test in pools(8).map(|mm| add(&mm, 4 * MIB, PageSize::Size4K)) {
        fill(&test, 4);
        test.guest.give_back(range(5 * PAGE, PAGE)).unwrap();
        test.guest.give_back(range(2 * MIB, 2 * MIB)).unwrap();
        let policy = CollapsePolicy { max_holes: 511, ..CollapsePolicy::default() };
        let report = test.guest.collapse(range(0, 4 * MIB), policy).unwrap();
        let why: Vec<Skip> = report.skipped.iter().map(|skip| skip.why).collect();
        let gfn = |gpa| Gpa::new(gpa).gfn();
        let expected = [5 * PAGE, 2 * MIB].map(|gpa| Skip::Returned { gfn: gfn(gpa) });
        assert_eq!(why, expected);
        let config = CollapserConfig { policy, scan_rate: None, copy_budget: None };
        test.guest.start_collapser(config).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while test.guest.collapser_stats().unwrap().rounds < 3 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert_eq!(returned(&test), 513);
        // Nor does anybody else fill it before it is wanted.
        assert_eq!(test.guest.populate(range(0, 4 * MIB)).unwrap(), 0);
        assert_eq!(returned(&test), 513);
        assert_eq!(test.guest.take_back(range(0, 4 * MIB)).unwrap(), 513);
        while test.guest.stats().resident.leaves[1] == 0 {
            assert!(Instant::now() < deadline, "a block that is wanted again is collapsed");
            std::thread::yield_now();
        }
        assert_eq!([test.load(4 * PAGE), test.load(5 * PAGE)], [4 * PAGE + 1, 0]);
        test.close();
    }
}

#[test]
fn a_fault_fills_no_more_of_a_block_than_was_touched_until_all_of_it_is_taken_back() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(8) {
        let test = add(&mm, 4 * MIB, PageSize::Size2M);
        test.guest.give_back(range(0, 4 * MIB)).unwrap();
        assert_eq!(returned(&test), 1024, "what was never touched can be given back, too");
        test.store(PAGE, 1);
        assert_eq!((returned(&test), test.guest.stats().resident.leaves[0]), (1023, 1));
        assert_eq!(test.guest.take_back(range(2 * MIB, 2 * MIB)).unwrap(), 512);
        assert_eq!(test.guest.take_back(range(2 * MIB, 2 * MIB)).unwrap(), 0, "once is enough");
        test.store(2 * MIB, 2);
        assert_eq!(test.guest.stats().resident.leaves, [1, 1, 0], "wanted wholly, filled wholly");
        // Beside pages that are back, those that are not stay away.
        assert_eq!(test.guest.take_back(range(4 * PAGE, 2 * PAGE)).unwrap(), 2);
        test.store(4 * PAGE, 3);
        assert_eq!(returned(&test), 509);
        assert_eq!([test.load(PAGE), test.load(2 * MIB), test.load(4 * PAGE)], [1, 2, 3]);
        // At rest only: a fault thread may be filling the rest of what was touched.
        test.close();
    }
}

#[test]
fn a_page_that_a_device_has_pinned_stays_with_it_until_it_lets_go() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(8) {
        let test = add(&mm, 4 * MIB, PageSize::Size4K);
        fill(&test, 2);
        let pinned = test.guest.pin(bytes(3 * PAGE, PAGE), Access::Write).unwrap();
        let given = test.guest.give_back(range(0, 2 * MIB)).unwrap();
        assert_eq!((given.pages, given.pinned), (512, 1));
        assert_eq!(given.returned_bytes, 2 * MIB - PAGE);
        assert_eq!((mm.usage().orphans, returned(&test)), (1, 512));
        assert!(mm.usage().host_bytes >= PAGE, "the device's page has memory");
        let slice = pinned.slices().next().unwrap();
        assert_eq!(slice.read_obj::<u64>(0).unwrap(), 3 * PAGE + 1);
        slice.write_obj(9u64, 0).unwrap();
        assert_eq!(test.load(3 * PAGE), 0, "the guest has another page by now");
        assert_eq!(slice.read_obj::<u64>(0).unwrap(), 9);
        drop(pinned);
        assert_eq!(mm.usage().orphans, 0);
        mm.audit().unwrap();
        test.close();
        assert_eq!(mm.usage().free, 2048);
    }
}

#[test]
fn a_pin_and_a_page_that_is_placed_find_what_was_given_back_absent() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(8) {
        let test = add(&mm, 4 * MIB, PageSize::Size4K);
        fill(&test, 2);
        test.guest.give_back(range(0, 2 * MIB)).unwrap();
        let pinned = test.guest.pin(bytes(PAGE, 2 * PAGE), Access::Read).unwrap();
        assert_eq!(pinned.slices().next().unwrap().read_obj::<u64>(0).unwrap(), 0);
        drop(pinned);
        let mut page = [0; PAGE as usize];
        page[0] = 7;
        let placed = test.guest.place(Gpa::new(9 * PAGE), guest_mm::place::Content::Bytes(&page));
        assert_eq!(placed.unwrap(), Placed::Here);
        assert_eq!([test.load(9 * PAGE), test.load(PAGE)], [7, 0]);
        assert_eq!(returned(&test), 509);
        mm.audit().unwrap();
        test.close();
    }
}

#[test]
fn merged_pages_lose_a_leaf_and_nothing_of_them_goes_to_the_host() {
    if !require_userfaultfd() {
        return;
    }
    let mm = pool(BackingKind::Memfd, 8);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    [0, PAGE].into_iter().for_each(|at| test.store(at, 5));
    let gfn = |page: u64| Gpa::new(page * PAGE).gfn();
    mm.merge((&test.guest, gfn(0)), (&test.guest, gfn(1))).unwrap();
    let given = test.guest.give_back(range(PAGE, PAGE)).unwrap();
    let expected = GivenBack { pages: 1, shared: 1, ..GivenBack::default() };
    assert_eq!(given, expected);
    assert_eq!([test.load(0), test.load(PAGE)], [5, 0]);
    // The last leaf takes the frame along.
    assert_eq!(test.guest.give_back(range(0, PAGE)).unwrap().returned_bytes, PAGE);
    mm.audit().unwrap();
    test.close();
}

#[test]
fn what_is_no_ram_is_refused_and_guard_pages_stay() {
    if !require_userfaultfd() {
        return;
    }
    let mm = pool(BackingKind::Memfd, 8);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    let beyond = range(2 * MIB, 4 * MIB);
    assert_eq!(test.guest.give_back(beyond), Err(GiveBackError::NotRam(beyond)));
    assert!(test.guest.take_back(beyond).is_err());
    assert_eq!(test.guest.stats().balloon.refused, 1);
    test.guest.mark(range(PAGE, PAGE), Marker::Guard).unwrap();
    assert_eq!(test.guest.give_back(range(0, 2 * MIB)).unwrap().pages, 511);
    assert_eq!(test.guest.memory_map().blocks[0].guard, 1);
    assert_eq!(test.guest.take_back(range(0, 2 * MIB)).unwrap(), 511);
    assert_eq!(test.guest.memory_map().blocks[0].guard, 1);
    mm.audit().unwrap();
    test.close();
}

/// As for an unmap: the kernel would round a part of a page down to nothing and report success.
#[test]
fn of_a_hugetlb_pool_whole_pages_are_given_back_and_parts_are_refused() {
    let Some(mm) = on_huge_pages(2) else { return };
    let test = add(&mm, 4 * MIB, PageSize::Size2M);
    [0, 2 * MIB].into_iter().for_each(|at| test.store(at, 9));
    let error = test.guest.give_back(range(0, MIB)).unwrap_err();
    assert!(matches!(error, GiveBackError::CutsPage(_)), "{error}");
    assert!(test.guest.take_back(range(0, MIB)).is_err());
    assert_eq!((test.load(0), returned(&test)), (9, 0));
    let given = test.guest.give_back(range(0, 2 * MIB)).unwrap();
    assert_eq!((given.pages, given.returned_bytes), (512, 2 * MIB));
    assert_eq!(mm.usage().host_bytes, 2 * MIB);
    assert_eq!([test.load(0), test.load(2 * MIB)], [0, 9]);
    assert_eq!((returned(&test), mm.usage().host_bytes), (0, 4 * MIB));
    test.close();
}
