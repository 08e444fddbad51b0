//! A balloon on real guest memory.

use std::time::{Duration, Instant};

use guest_mm::addr::{Gfn, GfnRange, Gpa, PageSize};
use guest_mm::collapse::CollapsePolicy;
use guest_mm::pool::{BackingChoice, BackingKind};
use guest_mm::prot::Access;
use guest_mm::{CollapserConfig, FaultPolicy, Guest, GuestConfig, GuestMm};

use crate::dma::{Pinning, Reclaiming};

use super::*;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const BYTES: u64 = 16 * MIB;
/// The rings are behind what the driver gives.
const RINGS: u64 = 12 * MIB;
const NUMBERS: u64 = 13 * MIB;

/// A guest and a balloon on its memory. The devices go first.
struct Machine {
    rig: Rig<Pinning>,
    guest: Guest,
    service: GuestMm,
}

impl Machine {
    /// The first 8 MiB hold the address of each page.
    fn new(kind: BackingKind, pages: PageSize) -> Machine {
        let service = GuestMm::new(BackingChoice::Only(kind), 2 * BYTES, pages).unwrap();
        let guest = service
            .add_guest(GuestConfig {
                ram: vec![GfnRange::from_bytes(Gpa::new(0), BYTES).unwrap()],
                over: Vec::new(),
                on_missing: None,
                policy: FaultPolicy { pages },
                fault_threads: 1,
                on_stop: Box::new(|_| {}),
            })
            .unwrap();
        guest.populate(frames(0, 2048)).unwrap();
        for at in (0..8 * MIB).step_by(PAGE as usize) {
            guest.write(Gpa::new(at), &(at + 1).to_le_bytes()).unwrap();
        }
        let dma = Pinning::new(guest.pinner());
        let host = Box::new(Reclaiming::new(guest.reclaimer()));
        let none = Shape { statistics: None, ..USUAL };
        let mut machine = Machine { rig: Rig::on(dma, none, host, RINGS), guest, service };
        // Each queue was looked at once, so that its rings are there: by pages that are no RAM, and one that is not gone.
        machine.rig.name(INFLATE, &[u32::MAX], NUMBERS);
        machine.rig.name(DEFLATE, &[0], NUMBERS);
        report(&mut machine, 1 << 40, PAGE);
        machine
    }

    /// What the guest finds at `at`.
    fn load(&self, at: u64) -> u64 {
        self.guest.fault(Gpa::new(at), Access::Read).unwrap();
        let mut word = [0; 8];
        self.guest.read(Gpa::new(at), &mut word).unwrap();
        u64::from_le_bytes(word)
    }

    fn returned(&self) -> u64 {
        self.guest.stats().resident.returned
    }

    fn host_bytes(&self) -> u64 {
        self.service.usage().host_bytes
    }

    /// Pages of the pool that are in use.
    fn used(&self) -> u64 {
        self.service.usage().used
    }

    fn end(self) {
        let Machine { rig, guest, service } = self;
        rig.device.retire();
        drop(rig);
        guest.close().unwrap();
        service.audit().unwrap();
    }
}

fn frames(first: u64, count: u64) -> GfnRange {
    GfnRange::new(Gfn::new(first), count).unwrap()
}

/// Reports free memory on the queue that it has without statistics.
fn report(machine: &mut Machine, at: u64, len: u64) {
    machine.rig.begin(2, &[Buffer::writable(at, len as u32)]);
    machine.rig.end(2);
}

const KINDS: [BackingKind; 2] = [BackingKind::Memfd, BackingKind::Tmpfs];

#[test]
fn what_a_guest_gives_leaves_table_pool_and_host_and_comes_back_as_zeroes() {
    if !::tests::require_userfaultfd() {
        return;
    }
    for kind in KINDS {
        let mut machine = Machine::new(kind, PageSize::Size4K);
        let (used, host) = (machine.used(), machine.host_bytes());
        let pages: Vec<u32> = (512..1536).rev().collect();
        machine.rig.name(INFLATE, &pages, NUMBERS);
        assert_eq!(machine.returned(), 1024);
        assert_eq!(used - machine.used(), 1024);
        assert_eq!(host - machine.host_bytes(), 4 * MIB, "{kind:?}");
        assert_eq!(machine.rig.counts(["inflated", "went_to_host"]), [1024 + 1, 1024]);
        assert_eq!(
            [machine.load(2 * MIB), machine.load(5 * MIB)],
            [0, 0],
            "what is touched is zeroes"
        );
        assert_eq!(
            [machine.load(2 * MIB - PAGE), machine.load(6 * MIB)],
            [2 * MIB - PAGE + 1, 6 * MIB + 1]
        );
        assert_eq!(machine.returned(), 1022);
        machine.rig.name(DEFLATE, &pages, NUMBERS);
        assert_eq!((machine.returned(), machine.load(3 * MIB)), (0, 0));
        assert_eq!(machine.rig.count("deflated"), Some(1024 + 1));
        machine.end();
    }
}

#[test]
fn free_pages_that_are_reported_go_and_nobody_pins_them() {
    if !::tests::require_userfaultfd() {
        return;
    }
    for kind in KINDS {
        let mut machine = Machine::new(kind, PageSize::Size4K);
        let (used, host) = (machine.used(), machine.host_bytes());
        report(&mut machine, 4 * MIB, 2 * MIB);
        assert_eq!((machine.returned(), used - machine.used()), (512, 512), "{kind:?}");
        assert_eq!(host - machine.host_bytes(), 2 * MIB, "{kind:?}");
        assert_eq!(machine.rig.counts(["reported", "went_to_host", "pinned"]), [512 + 1, 512, 0]);
        assert_eq!([machine.load(4 * MIB), machine.load(6 * MIB)], [0, 6 * MIB + 1]);
        machine.end();
    }
}

#[test]
fn a_page_out_of_a_huge_one_splits_it_and_the_rest_keeps_its_bytes() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let mut machine = Machine::new(BackingKind::Tmpfs, PageSize::Size2M);
    let huge = machine.guest.stats().resident.leaves[1];
    assert!(huge >= 4, "{huge}");
    machine.rig.name(INFLATE, &[700], NUMBERS);
    let leaves = machine.guest.stats().resident.leaves;
    assert_eq!(leaves[0], 511, "{leaves:?}");
    assert_eq!(machine.returned(), 1);
    for page in 512..1024 {
        let expected = if page == 700 { 0 } else { page * PAGE + 1 };
        assert_eq!(machine.load(page * PAGE), expected, "page {page}");
    }
    machine.end();
}

#[test]
fn no_collapse_fills_what_was_given_until_the_guest_wants_it_again() {
    if !::tests::require_userfaultfd() {
        return;
    }
    for kind in KINDS {
        let mut machine = Machine::new(kind, PageSize::Size4K);
        machine.rig.name(INFLATE, &[5, 6, 7], NUMBERS);
        report(&mut machine, 2 * MIB, 2 * MIB);
        let policy = CollapsePolicy { max_holes: 511, ..CollapsePolicy::default() };
        let outcome = machine.guest.collapse(frames(0, 1024), policy).unwrap();
        assert_eq!((outcome.promoted + outcome.copied, outcome.skipped.len()), (0, 2));
        let config = CollapserConfig { policy, scan_rate: None, copy_budget: None };
        machine.guest.start_collapser(config).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while machine.guest.collapser_stats().unwrap().rounds < 3 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(machine.returned(), 515, "{kind:?}");
        machine.rig.name(DEFLATE, &[7, 6, 5], NUMBERS);
        while machine.guest.stats().resident.leaves[1] < 3 {
            assert!(Instant::now() < deadline, "{:?}", machine.guest.stats().resident);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!([machine.load(4 * PAGE), machine.load(5 * PAGE)], [4 * PAGE + 1, 0]);
        machine.guest.pause_collapser();
        machine.end();
    }
}

#[test]
fn a_page_that_another_device_holds_goes_when_it_lets_go() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let mut machine = Machine::new(BackingKind::Memfd, PageSize::Size4K);
    let held = machine.guest.pin(guest_mm::addr::GpaRange::from(frames(9, 1)), Access::Write);
    let held = held.unwrap();
    machine.rig.name(INFLATE, &[8, 9, 10], NUMBERS);
    assert_eq!(machine.rig.counts(["went_to_host", "pinned"]), [2, 1]);
    assert_eq!(machine.service.usage().orphans, 1);
    assert_eq!(machine.load(9 * PAGE), 0, "the guest has another page by now");
    drop(held);
    assert_eq!(machine.service.usage().orphans, 0);
    machine.end();
}

#[test]
fn what_is_no_ram_is_counted_and_the_memory_is_as_it_was() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let mut machine = Machine::new(BackingKind::Memfd, PageSize::Size4K);
    let beyond = (BYTES / PAGE) as u32;
    machine.rig.name(INFLATE, &[beyond, beyond + 1, u32::MAX], NUMBERS);
    report(&mut machine, 1 << 40, MIB);
    report(&mut machine, u64::MAX - 2 * MIB, MIB);
    assert_eq!(machine.rig.count("not_ram"), Some(2 + 3 + 256 + 255));
    assert_eq!((machine.returned(), machine.rig.device.report().broken), (0, None));
    machine.end();
}
