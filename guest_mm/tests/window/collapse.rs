//! Blocks become huge, under a guest and under devices.

use guest_mm::addr::{Gpa, GpaRange, PageSize};
use guest_mm::collapse::{CollapsePolicy, Copying, Skip};
use guest_mm::pool::{BackingChoice, BackingKind};
use guest_mm::prot::{Access, Prot};
use guest_mm::{CollapserConfig, GuestMm};
use tests::require_userfaultfd;
use vm_memory::Bytes;

use super::{MIB, TestGuest, add, range, service};

const PAGE: u64 = 4096;

/// Pools of both kinds: of huge folios, and of small ones.
fn pools(bytes: u64) -> [GuestMm; 2] {
    [BackingKind::Tmpfs, BackingKind::Memfd]
        .map(|kind| GuestMm::new(BackingChoice::Only(kind), bytes, PageSize::Size4K).unwrap())
}

pub(super) fn bytes(gpa: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa::new(gpa), len).unwrap()
}

/// Writes its own address to every page of `mib` MiB at `gpa`.
fn fill(test: &TestGuest, gpa: u64, mib: u64) {
    (gpa..gpa + mib * MIB).step_by(PAGE as usize).for_each(|at| test.store(at + 8, at));
}

fn check(test: &TestGuest, gpa: u64, mib: u64) {
    for at in (gpa..gpa + mib * MIB).step_by(PAGE as usize) {
        assert_eq!(test.load(at + 8), at);
    }
}

/// KiB of this process's windows that the host maps by huge pages.
fn host_huge_kib(test: &TestGuest) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (start, end) = (test.base.as_u64(), test.base.as_u64() + 64 * MIB);
    let (mut inside, mut huge) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((from, _)) = first.split_once('-')
            && let Ok(from) = u64::from_str_radix(from, 16)
        {
            inside = (start..end).contains(&from);
        } else if inside && (first == "ShmemPmdMapped:" || first == "FilePmdMapped:") {
            huge += words.next().unwrap().parse::<u64>().unwrap();
        }
    }
    huge
}

#[test]
fn pages_in_order_become_a_block_without_a_copy_and_the_host_maps_it_huge() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(64 * MIB) {
        let test = add(&mm, 64 * MIB, PageSize::Size4K);
        fill(&test, 0, 4);
        let pinned = test.guest.pin(bytes(2 * MIB, PAGE), Access::Write).unwrap();
        let report = test.guest.collapse(range(0, 4 * MIB), CollapsePolicy::default()).unwrap();
        assert_eq!(
            (report.promoted, report.copied, report.skipped.len()),
            (2, 0, 0),
            "pinned or not"
        );
        assert_eq!(test.guest.stats().resident.leaves, [0, 2, 0]);
        assert_eq!(test.guest.memory_map().blocks[0].huge, 512);
        assert_eq!(host_huge_kib(&test), 4096, "{}", mm.describe_pool());
        check(&test, 0, 4);
        pinned.slices().next().unwrap().write_obj(7u64, 8).unwrap();
        assert_eq!(test.load(2 * MIB + 8), 7, "the device and the guest share the page still");
        test.store(2 * MIB + 8, 2 * MIB);
        drop(pinned);
        test.guest.unmap(range(2 * MIB + 4096, PAGE)).unwrap();
        assert_eq!(test.load(2 * MIB + 4096 + 8), 0);
        test.store(2 * MIB + 4096 + 8, 2 * MIB + 4096);
        check(&test, 0, 4);
        test.guest.audit().unwrap();
        test.close();
        mm.audit().unwrap();
    }
}

#[test]
fn the_map_shows_what_devices_have_pinned_whatever_maps_it() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(64 * MIB) {
        let test = add(&mm, 64 * MIB, PageSize::Size4K);
        fill(&test, 0, 6);
        test.guest.collapse(range(2 * MIB, 4 * MIB), CollapsePolicy::default()).unwrap();
        let pinned = || {
            let blocks = test.guest.memory_map().blocks;
            [0, 1, 2, 3].map(|block: usize| blocks[block].pinned)
        };
        assert_eq!(pinned(), [0; 4]);
        let small = test.guest.pin(bytes(3 * PAGE - 8, 16), Access::Read).unwrap();
        let same = test.guest.pin(bytes(3 * PAGE, 8), Access::Read).unwrap();
        let part = test.guest.pin(bytes(2 * MIB, PAGE), Access::Write).unwrap();
        let all = test.guest.pin(bytes(4 * MIB, 2 * MIB), Access::Write).unwrap();
        assert_eq!(pinned(), [2, 512, 512, 0], "a pin of a huge leaf holds its block");
        drop((small, part, all));
        assert_eq!(pinned(), [1, 0, 0, 0]);
        drop(same);
        assert_eq!(pinned(), [0; 4]);
        test.close();
    }
}

/// A guest of 4 blocks whose first block's pages lie anywhere: each block's reservation was broken up, by a
/// neighbour on the same pool that has gone again.
pub(super) fn scattered(mm: &GuestMm) -> TestGuest {
    let test = add(mm, 8 * MIB, PageSize::Size4K);
    let neighbour = add(mm, 56 * MIB, PageSize::Size4K);
    // One page keeps the reservation of block 0 alive until the neighbour takes the rest.
    test.store(8, 0);
    neighbour.guest.populate(range(0, 56 * MIB)).unwrap();
    let more = add(mm, 6 * MIB, PageSize::Size4K);
    more.guest.populate(range(0, 6 * MIB)).unwrap();
    // The pool is full now but for what block 0 reserves; every other page of it goes to others.
    let taken = add(mm, 2 * MIB, PageSize::Size4K);
    for page in 0..255 {
        taken.store(page * 2 * PAGE, 1);
    }
    more.guest.unmap(range(0, 4 * MIB)).unwrap();
    fill(&test, 0, 2);
    taken.close();
    more.close();
    neighbour.close();
    test
}

#[test]
fn pages_from_anywhere_are_gathered_in_a_block() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(64 * MIB) {
        let test = scattered(&mm);
        let off = test.guest.memory_map().blocks[0].scattered;
        assert!(off > 0, "the block is not scattered");
        let never = CollapsePolicy { copying: Copying::Never, ..CollapsePolicy::default() };
        let report = test.guest.collapse(range(0, 2 * MIB), never).unwrap();
        assert_eq!(report.skipped[0].why, Skip::Scattered);
        let pinned = test.guest.pin(bytes(5 * PAGE, 8), Access::Read).unwrap();
        let report = test.guest.collapse(range(0, 2 * MIB), CollapsePolicy::default()).unwrap();
        assert!(matches!(report.skipped[0].why, Skip::Pinned { gfn } if gfn.as_u64() == 5));
        check(&test, 0, 2);
        drop(pinned);
        let report = test.guest.collapse(range(0, 2 * MIB), CollapsePolicy::default()).unwrap();
        assert_eq!((report.copied, report.skipped.len()), (1, 0));
        assert_eq!(host_huge_kib(&test), 2048, "{}", mm.describe_pool());
        check(&test, 0, 2);
        test.guest.protect(range(PAGE, PAGE), Prot::R).unwrap();
        check(&test, 0, 2);
        test.guest.audit().unwrap();
        test.close();
        mm.audit().unwrap();
    }
}

#[test]
fn holes_are_filled_with_zeroes_up_to_the_policy() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(8 * MIB) {
        let test = add(&mm, 8 * MIB, PageSize::Size4K);
        fill(&test, 0, 2);
        test.guest.unmap(range(3 * PAGE, 2 * PAGE)).unwrap();
        let few = CollapsePolicy { max_holes: 1, ..CollapsePolicy::default() };
        let report = test.guest.collapse(range(0, 2 * MIB), few).unwrap();
        assert_eq!(report.skipped[0].why, Skip::Holes { absent: 2 });
        let enough = CollapsePolicy { max_holes: 2, ..CollapsePolicy::default() };
        let report = test.guest.collapse(range(0, 2 * MIB), enough).unwrap();
        assert_eq!((report.promoted, report.holes_filled), (1, 2));
        assert_eq!((test.load(3 * PAGE + 8), test.load(5 * PAGE + 8)), (0, 5 * PAGE));
        test.close();
        mm.audit().unwrap();
    }
}

#[test]
fn the_collapser_finds_blocks_by_itself_and_rests_when_it_is_told() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let mut test = add(&mm, 8 * MIB, PageSize::Size4K);
    let flat_out =
        CollapserConfig { scan_rate: None, copy_budget: None, ..CollapserConfig::default() };
    test.guest.start_collapser(flat_out).unwrap();
    test.guest.pause_collapser();
    fill(&test, 0, 4);
    assert_eq!(test.guest.stats().resident.leaves, [1024, 0, 0], "it rests");
    test.guest.resume_collapser();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while test.guest.stats().resident.leaves != [0, 2, 0] {
        assert!(std::time::Instant::now() < deadline, "{:?}", test.guest.collapser_stats());
        std::thread::yield_now();
    }
    check(&test, 0, 4);
    test.close();
}

/// What is absent gets the rights of RAM when it is touched. A collapse gave it those of the pages around it, and the guest
/// was stopped at its first store.
#[test]
fn holes_among_pages_that_lost_a_right_are_not_filled() {
    if !require_userfaultfd() {
        return;
    }
    for mm in pools(64 * MIB) {
        let test = add(&mm, 2 * MIB, PageSize::Size4K);
        test.store(0, 1);
        test.guest.protect(range(0, 2 * MIB), Prot::R).unwrap();
        let policy = CollapsePolicy { max_holes: 511, ..CollapsePolicy::default() };
        let report = test.guest.collapse(range(0, 2 * MIB), policy).unwrap();
        assert!(matches!(report.skipped[0].why, Skip::Holes { absent: 511 }), "{report:?}");
        test.store(PAGE, 2);
        assert_eq!([test.load(0), test.load(PAGE)], [1, 2]);
        test.close();
    }
}
