//! Pages of the same bytes become one, under guests and under devices.

use std::time::{Duration, Instant};

use guest_mm::addr::{Gpa, PageSize};
use guest_mm::dedup::{DedupPolicy, DedupStats, Splitting};
use guest_mm::prot::Access;
use guest_mm::{DedupConfig, GuestMm};
use tests::require_userfaultfd;
use vm_memory::Bytes;

use super::collapse::bytes;
use super::{MIB, TestGuest, add, range, service};

const PAGE: u64 = 4096;

/// Writes `value` to each of `pages`, in the middle of the page.
fn fill(test: &TestGuest, pages: std::ops::Range<u64>, value: impl Fn(u64) -> u64) {
    pages.for_each(|page| test.store(page * PAGE + 2048, value(page)));
}

fn check(test: &TestGuest, pages: std::ops::Range<u64>, value: impl Fn(u64) -> u64) {
    for page in pages {
        assert_eq!(test.load(page * PAGE + 2048), value(page), "page {page}");
        assert_eq!(test.load(page * PAGE), 0, "page {page}");
    }
}

fn twice(mm: &GuestMm) -> DedupStats {
    mm.dedup(DedupPolicy::default(), 2)
}

/// The books are right once the fault threads have done what they were at: a vCPU goes on before its fault is over.
fn audit(mm: &GuestMm) {
    let until = Instant::now() + Duration::from_secs(5);
    while mm.audit().is_err() && Instant::now() < until {
        std::thread::yield_now();
    }
    mm.audit().unwrap();
}

/// Waits until the scanner has done as `done` says.
fn wait_for(mm: &GuestMm, done: impl Fn(&DedupStats) -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done(&mm.dedup_stats()) {
        assert!(Instant::now() < until, "{:?}", mm.dedup_stats());
        std::thread::yield_now();
    }
}

/// One service with two guests.
fn two(pages: PageSize) -> (GuestMm, TestGuest, TestGuest) {
    let mm = service(16 * MIB, pages);
    let (one, other) = (add(&mm, 4 * MIB, pages), add(&mm, 4 * MIB, pages));
    (mm, one, other)
}

#[test]
fn equal_pages_of_two_guests_become_one_frame_and_a_store_parts_them() {
    if !require_userfaultfd() {
        return;
    }
    let (mm, one, other) = two(PageSize::Size4K);
    fill(&one, 0..256, |page| page + 1);
    fill(&other, 0..256, |page| page + 1);
    // No other page has these bytes.
    fill(&other, 300..310, |page| page + 1);
    assert_eq!(mm.usage().used, 522);
    let first = mm.dedup_once(DedupPolicy::default());
    assert_eq!((first.scanned, first.merged), (522, 0), "the first look takes notes only");
    let stats = mm.dedup_once(DedupPolicy::default());
    assert_eq!(
        (stats.merged, stats.shared_frames, stats.saved_pages),
        (256, 256, 256),
        "{stats:?}"
    );
    assert_eq!(mm.usage().used, 266);
    audit(&mm);
    check(&one, 0..256, |page| page + 1);
    check(&other, 0..256, |page| page + 1);

    // Each side writes to some, and some are written by both.
    fill(&one, 0..128, |page| page + 1000);
    fill(&other, 64..192, |page| page + 2000);
    check(&one, 0..128, |page| page + 1000);
    check(&one, 128..256, |page| page + 1);
    check(&other, 0..64, |page| page + 1);
    check(&other, 64..192, |page| page + 2000);
    check(&other, 192..256, |page| page + 1);
    audit(&mm);
    one.guest.audit().unwrap();
    // 256 pages of each and 10; one frame is both's of pages 192 to 255.
    let stats = mm.dedup_once(DedupPolicy::default());
    assert_eq!(stats.saved_pages, 64, "{stats:?}");
    assert_eq!(mm.usage().used, 522 - 64, "what only the scanner had is free after a round");
    one.close();
    other.close();
    audit(&mm);
    assert_eq!((mm.usage().used, mm.usage().free), (0, 4096));
}

#[test]
fn pages_of_one_guest_are_merged_and_more_join_them() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    fill(&test, 0..100, |_| 7);
    let stats = twice(&mm);
    assert_eq!((stats.merged, stats.shared_frames, stats.saved_pages), (99, 1, 99));
    fill(&test, 100..200, |_| 7);
    let stats = twice(&mm);
    assert_eq!((stats.merged, stats.shared_frames, stats.saved_pages), (199, 1, 199));
    assert_eq!(mm.usage().used, 1);
    assert_eq!(test.guest.memory_map().blocks[0].shared, 200);
    check(&test, 0..200, |_| 7);
    audit(&mm);
    test.close();
    audit(&mm);
}

#[test]
fn a_pinned_page_is_left_alone_and_a_later_pin_gets_a_page_of_its_own() {
    if !require_userfaultfd() {
        return;
    }
    for access in [Access::Read, Access::Write] {
        let (mm, one, other) = two(PageSize::Size4K);
        for test in [&one, &other] {
            fill(test, 0..2, |page| page + 1);
        }
        let pinned = one.guest.pin(bytes(0, PAGE), access).unwrap();
        let stats = mm.dedup(DedupPolicy::default(), 3);
        assert_eq!((stats.merged, stats.pinned), (1, 3), "page 1 and not page 0: {stats:?}");
        // Device and guest share the page still.
        one.store(2048, 77);
        assert_eq!(pinned.slices().next().unwrap().read_obj::<u64>(2048).unwrap(), 77);
        assert_eq!(other.load(2048), 1);
        drop(pinned);

        // A pin of a shared page.
        let late = one.guest.pin(bytes(PAGE, PAGE), access).unwrap();
        let stats = one.guest.stats();
        assert_eq!(stats.pins.shared + stats.unshared, 1);
        let slice = late.slices().next().unwrap();
        assert_eq!(slice.read_obj::<u64>(2048).unwrap(), 2);
        one.store(PAGE + 2048, 88);
        assert_eq!(slice.read_obj::<u64>(2048).unwrap(), 88, "the device sees the guest's store");
        if access == Access::Write {
            slice.write_obj(99u64, 2048).unwrap();
            assert_eq!(one.load(PAGE + 2048), 99, "and the guest the device's");
        }
        assert_eq!(other.load(PAGE + 2048), 2, "and the other guest neither");
        drop(late);
        audit(&mm);
        one.close();
        other.close();
        audit(&mm);
    }
}

#[test]
fn zero_pages_go_and_come_back_as_zeroes() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    fill(&test, 0..512, |page| u64::from(page >= 500));
    let stats = twice(&mm);
    assert_eq!((stats.zeroes, stats.merged), (500, 11), "{stats:?}");
    assert_eq!(mm.usage().used, 1);
    assert_eq!(test.guest.memory_map().blocks[0].small, 12);
    audit(&mm);
    check(&test, 0..512, |page| u64::from(page >= 500));
    fill(&test, 0..512, |page| page);
    check(&test, 0..512, |page| page);
    audit(&mm);
    test.close();
}

#[test]
fn huge_pages_stay_unless_the_policy_allows_a_split_and_then_only_those_with_something_in_them() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size2M);
    let test = add(&mm, 6 * MIB, PageSize::Size2M);
    // A block of zeroes but for a page, one of many pages that are all different, and one with a page of the first.
    fill(&test, 0..1, |_| 5);
    fill(&test, 512..1024, |page| page);
    fill(&test, 1024..1536, |page| if page == 1500 { 5 } else { page });
    let stats = twice(&mm);
    assert_eq!((stats.scanned, stats.zeroes, stats.huge), (0, 0, 6), "{stats:?}");
    assert_eq!(test.guest.stats().resident.leaves, [0, 3, 0]);
    let policy = DedupPolicy { splitting: Splitting::Allowed, ..DedupPolicy::default() };
    let stats = mm.dedup(policy, 2);
    assert_eq!((stats.zeroes, stats.merged), (511, 1), "{stats:?}");
    assert_eq!(test.guest.stats().resident.leaves, [513, 1, 0]);
    assert_eq!(mm.usage().used, 512 + 512);
    audit(&mm);
    check(&test, 0..512, |page| 5 * u64::from(page == 0));
    check(&test, 512..1024, |page| page);
    check(&test, 1024..1536, |page| if page == 1500 { 5 } else { page });
    test.close();
    audit(&mm);
}

#[test]
fn volatile_pages_are_passed_over() {
    if !require_userfaultfd() {
        return;
    }
    let (mm, one, other) = two(PageSize::Size4K);
    for round in 1..6 {
        fill(&one, 0..10, |_| round);
        fill(&other, 0..10, |_| round);
        let stats = mm.dedup_once(DedupPolicy::default());
        assert_eq!((stats.merged, stats.volatile), (0, 20 * (round - 1)), "{stats:?}");
    }
    assert_eq!(mm.dedup_once(DedupPolicy::default()).merged, 19);
    one.close();
    other.close();
}

#[test]
fn a_guest_is_merged_no_further_than_its_budget_goes() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    fill(&test, 0..100, |_| 7);
    fill(&test, 200..300, |_| 0);
    let policy = DedupPolicy { max_merged: 10, ..DedupPolicy::default() };
    for _ in 0..3 {
        let stats = mm.dedup(policy, 2);
        assert_eq!((stats.merged, stats.zeroes, stats.saved_pages), (10, 100, 10), "{stats:?}");
        assert!(stats.over_budget >= 89, "{stats:?}");
    }
    // What is written to is no longer merged, and others may be.
    fill(&test, 0..100, |_| 8);
    let stats = mm.dedup(policy, 3);
    assert_eq!((stats.merged, stats.saved_pages), (20, 10), "{stats:?}");
    audit(&mm);
    test.close();
}

#[test]
fn unmerging_a_range_gives_every_page_of_it_a_frame_again() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    fill(&test, 0..100, |_| 7);
    twice(&mm);
    test.guest.unmerge(range(0, 50 * PAGE)).unwrap();
    audit(&mm);
    assert_eq!(mm.usage().used, 51);
    assert_eq!(test.guest.memory_map().blocks[0].shared, 50);
    check(&test, 0..100, |_| 7);
    test.guest.unmerge(range(0, 4 * MIB)).unwrap();
    assert_eq!(test.guest.memory_map().blocks[0].shared, 0);
    audit(&mm);
    check(&test, 0..100, |_| 7);
    test.close();
    audit(&mm);
}

#[test]
fn a_guest_leaves_while_its_pages_are_shared_and_the_other_keeps_its_bytes() {
    if !require_userfaultfd() {
        return;
    }
    let (mm, one, other) = two(PageSize::Size4K);
    for test in [&one, &other] {
        fill(test, 0..100, |page| page + 1);
    }
    mm.start_dedup(DedupConfig { scan_rate: None, ..DedupConfig::default() }).unwrap();
    wait_for(&mm, |stats| stats.saved_pages >= 100);
    // The shared frames lie where this one's pages were.
    one.close();
    audit(&mm);
    check(&other, 0..100, |page| page + 1);
    assert_eq!(mm.dedup_stats().saved_pages, 0);
    let third = add(&mm, 4 * MIB, PageSize::Size4K);
    fill(&third, 0..100, |page| page + 1);
    wait_for(&mm, |stats| stats.saved_pages >= 100);
    other.close();
    check(&third, 0..100, |page| page + 1);
    third.close();
    audit(&mm);
    mm.stop_dedup();
    assert_eq!(mm.usage().used, 0);
    audit(&mm);
}

#[test]
fn a_scanner_rests_while_it_is_paused() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    mm.start_dedup(DedupConfig { scan_rate: None, ..DedupConfig::default() }).unwrap();
    mm.pause_dedup();
    let before = mm.dedup_stats();
    assert!(before.paused);
    fill(&test, 0..100, |_| 7);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(mm.dedup_stats(), before);
    mm.resume_dedup();
    wait_for(&mm, |stats| stats.saved_pages >= 99);
    // Its frames outlive the scanner.
    mm.stop_dedup();
    audit(&mm);
    check(&test, 0..100, |_| 7);
    // A scanner that starts anew finds what is shared already.
    fill(&test, 100..110, |_| 7);
    twice(&mm);
    assert_eq!(mm.usage().used, 1);
    test.close();
}

/// Writers and a scanner that merges what they write as fast as it can: each finds what it wrote.
#[test]
fn guests_that_write_under_a_scanner_lose_nothing() {
    if !require_userfaultfd() {
        return;
    }
    let (mm, one, other) = two(PageSize::Size4K);
    mm.start_dedup(DedupConfig { scan_rate: None, ..DedupConfig::default() }).unwrap();
    std::thread::scope(|scope| {
        for test in [&one, &other] {
            scope.spawn(move || {
                let until = Instant::now() + Duration::from_millis(400);
                for round in (0..).take_while(|_| Instant::now() < until) {
                    // Many pages of few contents, zeroes among them.
                    fill(test, 0..128, |page| (page + round) % 4);
                    check(test, 0..128, |page| (page + round) % 4);
                }
            });
        }
        let device = scope.spawn(|| {
            let until = Instant::now() + Duration::from_millis(400);
            for round in (0..).take_while(|_| Instant::now() < until) {
                let page = 200 + round % 4;
                let pinned = one.guest.pin(bytes(page * PAGE, PAGE), Access::Write).unwrap();
                let slice = pinned.slices().next().unwrap();
                slice.write_obj(round % 3, 2048).unwrap();
                drop(pinned);
                assert_eq!(one.load(page * PAGE + 2048), round % 3);
            }
        });
        device.join().unwrap();
    });
    audit(&mm);
    let stats = mm.dedup_stats();
    assert!(stats.merged > 0 && stats.failed == 0, "{stats:?}");
    one.close();
    other.close();
    audit(&mm);
}

/// A page that had been out of its place stayed a mapping of its own when a store had brought it back: pages that were
/// merged and written to in turn used up the process's mappings, whatever the budget was, and then a fault could not be
/// served and stopped the guest.
#[test]
fn a_page_that_is_back_in_its_place_is_one_mapping_with_its_neighbours() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    fill(&test, 0..100, |_| 7);
    let before = test.mappings(4 * MIB);
    twice(&mm);
    check(&test, 0..100, |_| 7);
    assert!(test.mappings(4 * MIB) > before + 90, "each shows the same frame");
    fill(&test, 1..100, |page| page + 9);
    check(&test, 1..100, |page| page + 9);
    assert_eq!(test.mappings(4 * MIB), before);
    test.guest.audit().unwrap();
    test.close();
}

/// The note that a device has written to a page was one for all pages of a shared frame: who asked first took it from the
/// others, and a page of zeroes took it along. A migration would have left out what the device wrote.
#[test]
fn what_a_device_wrote_is_told_to_every_guest_that_shares_it() {
    if !require_userfaultfd() {
        return;
    }
    let (mm, one, other) = two(PageSize::Size4K);
    for (test, gpa) in [(&one, 0), (&other, 0), (&one, PAGE)] {
        test.store(gpa + 2048, 1);
        let pinned = test.guest.pin(bytes(gpa, PAGE), Access::Write).unwrap();
        pinned.slices().next().unwrap().write_obj(5 * u64::from(gpa == 0), 2048).unwrap();
    }
    assert_eq!(twice(&mm).merged, 1);
    assert_eq!(
        one.guest.drop_zeroes(Gpa::new(PAGE).gfn()).unwrap_err().to_string(),
        "a device has written to it, and nobody has asked for that yet"
    );
    let dirty = |test: &TestGuest| {
        let mut pages = Vec::new();
        test.guest.take_dirty(range(0, 4 * MIB), |gfn| pages.push(gfn.as_u64()));
        pages
    };
    assert_eq!(dirty(&one), [0, 1]);
    assert_eq!(dirty(&other), [0]);
    assert!(dirty(&one).is_empty() && dirty(&other).is_empty(), "each is told once");
    assert_eq!(mm.dedup_once(DedupPolicy::default()).zeroes, 1);
    one.store(2048, 6);
    assert!(dirty(&one).is_empty(), "the guest wrote, not a device");
    audit(&mm);
    one.close();
    other.close();
}
