//! A balloon worked by the driver of this crate, its thread running: the protocol on plain memory with a host that writes
//! down what it gets, and [`memory`] on real guest memory.

mod memory;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dma::{Dma, Plain};
use crate::virtio::device::Device;
use crate::virtio::driver::{Buffer, Driver};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::thread::Threads;

use super::host::{Given, Reclaim, Refused};
use super::wire::{F_DEFLATE_ON_OOM, F_REPORTING, F_STATS_VQ, MOST_NAMED};
use super::{Balloon, Shape};

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
const REPORTING: u16 = 3;
/// Where the driver writes numbers.
const DATA: u64 = 0x10_0000;
/// Frames of the RAM that the host knows.
const RAM: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs that came, and which way.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Run {
    Given(u64, u64),
    Taken(u64, u64),
}

/// Writes down what it gets. Every run has a page that is pinned and one that is shared, if it is so long.
#[derive(Clone, Debug)]
struct Ledger {
    runs: Arc<Mutex<Vec<Run>>>,
    granule: u64,
    fails: bool,
}

impl Ledger {
    fn check(&self, first: u64, frames: u64) -> Result<(), Refused> {
        match first + frames > RAM {
            true => Err(Refused::NotRam),
            false if self.fails => Err(Refused::Failed("out of order".into())),
            false => Ok(()),
        }
    }
}

impl Reclaim for Ledger {
    fn granule(&self) -> u64 {
        self.granule
    }

    fn give_back(&self, first: u64, frames: u64) -> Result<Given, Refused> {
        self.check(first, frames)?;
        self.runs.lock().unwrap().push(Run::Given(first, frames));
        let odd = u64::from(frames > 2);
        Ok(Given { went: frames - 2 * odd, pinned: odd, shared: odd })
    }

    fn take_back(&self, first: u64, frames: u64) -> Result<u64, Refused> {
        self.check(first, frames)?;
        self.runs.lock().unwrap().push(Run::Taken(first, frames));
        Ok(frames)
    }
}

const USUAL: Shape = Shape {
    target: 100,
    deflate_on_oom: true,
    reporting: true,
    statistics: Some(Duration::from_millis(20)),
};

struct Rig<D: Dma> {
    dma: D,
    device: Arc<Device<D>>,
    driver: Driver<D>,
    _threads: Threads,
}

fn device<D: Dma>(dma: &D, shape: Shape, host: Box<dyn Reclaim>) -> Arc<Device<D>> {
    let model = Box::new(Balloon::new(shape, host).unwrap());
    Arc::new(Device::new("balloon", dma.clone(), model, Interrupt::default()).unwrap())
}

impl<D: Dma> Rig<D> {
    /// A balloon on `dma`, its rings from `rings` on.
    fn on(dma: D, shape: Shape, host: Box<dyn Reclaim>, rings: u64) -> Rig<D> {
        let device = device(&dma, shape, host);
        let _threads = Threads::start(&[Arc::clone(&device)], 1).unwrap();
        let mut driver = Driver::new(Arc::clone(&device));
        assert!(driver.bring_up(rings, 16) <= rings + 0xf_f000);
        Rig { dma, device, driver, _threads }
    }

    fn begin(&mut self, queue: u16, buffers: &[Buffer]) {
        self.driver.add(&self.dma.view(), queue, buffers).unwrap();
        self.driver.kick(queue);
    }

    fn end(&mut self, queue: u16) -> u32 {
        let begin = Instant::now();
        loop {
            if let Some((_, written)) = self.driver.poll(&self.dma.view(), queue) {
                return written;
            }
            assert!(begin.elapsed() < PATIENCE, "no answer: {:?}", self.device.report());
            std::thread::yield_now();
        }
    }

    /// Names `pages` to `queue`, their numbers written at `at`.
    fn name(&mut self, queue: u16, pages: &[u32], at: u64) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.dma.view().write_slice(&bytes, GuestAddress(at)).unwrap();
        self.begin(queue, &[Buffer::readable(at, bytes.len() as u32)]);
        assert_eq!(self.end(queue), 0, "nothing is written");
    }

    fn count(&self, name: &str) -> Option<u64> {
        self.device.report().counts.iter().find(|count| count.0 == name).map(|count| count.1)
    }

    fn counts<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        names.map(|name| self.count(name).unwrap())
    }

    /// Waits until a driver's nonsense has broken the device: why.
    fn broken(&self) -> String {
        let begin = Instant::now();
        loop {
            if let Some(reason) = self.device.report().broken {
                return reason;
            }
            assert!(begin.elapsed() < PATIENCE, "it goes on: {:?}", self.device.report());
            std::thread::yield_now();
        }
    }
}

fn plain(shape: Shape, granule: u64) -> (Rig<Plain>, Ledger) {
    let dma = Plain::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
    let ledger = Ledger { runs: Arc::default(), granule, fails: false };
    (Rig::on(dma, shape, Box::new(ledger.clone()), 0x1000), ledger)
}

impl Ledger {
    fn take(&self) -> Vec<Run> {
        std::mem::take(&mut *self.runs.lock().unwrap())
    }
}

use Run::{Given as Gave, Taken};

#[test]
fn pages_that_are_named_in_any_order_come_as_runs_and_go_the_same_way() {
    let (mut rig, ledger) = plain(USUAL, 1);
    rig.name(INFLATE, &[7, 3, 5, 4, 4, 9, 8, 1], DATA);
    assert_eq!(ledger.take(), [Gave(1, 1), Gave(3, 3), Gave(7, 3)]);
    rig.name(DEFLATE, &[9, 4, 3], DATA);
    assert_eq!(ledger.take(), [Taken(3, 2), Taken(9, 1)]);
    let counts = rig.counts(["inflated", "deflated", "went_to_host", "pinned", "shared"]);
    assert_eq!(counts, [8, 3, 3, 2, 2]);
}

#[test]
fn a_list_may_be_cut_anywhere_and_be_longer_than_what_is_sorted_at_once() {
    let (mut rig, ledger) = plain(USUAL, 1);
    let bytes: Vec<u8> = (0..3000_u32).rev().flat_map(u32::to_le_bytes).collect();
    rig.dma.view().write_slice(&bytes, GuestAddress(DATA)).unwrap();
    let cut = [Buffer::readable(DATA, 4095), Buffer::readable(DATA + 4095, 12000 - 4095)];
    rig.begin(INFLATE, &cut);
    rig.end(INFLATE);
    assert_eq!(ledger.take(), [Gave(1976, 1024), Gave(952, 1024), Gave(0, 952)]);
}

#[test]
fn pages_outside_of_ram_are_counted_and_the_device_goes_on() {
    let (mut rig, ledger) = plain(USUAL, 1);
    rig.name(INFLATE, &[u32::MAX, RAM as u32, 7], DATA);
    assert_eq!(ledger.take(), [Gave(7, 1)]);
    rig.name(DEFLATE, &[u32::MAX, u32::MAX - 1], DATA);
    assert_eq!((rig.count("not_ram"), rig.device.report().broken), (Some(4), None));
}

#[test]
fn of_a_host_with_large_pages_only_whole_ones_go() {
    let (mut rig, ledger) = plain(USUAL, 512);
    let pages: Vec<u32> = (500..1600).collect();
    rig.name(INFLATE, &pages, DATA);
    // In the order of the list they are one run, but they are sorted a batch of 1024 at a time.
    assert_eq!(ledger.take(), [Gave(512, 512)]);
    rig.name(INFLATE, &[1, 2], DATA);
    assert_eq!(ledger.take(), []);
    rig.begin(REPORTING, &[Buffer::writable(1 << 20, 5 << 20)]);
    rig.end(REPORTING);
    assert_eq!(ledger.take(), [Gave(512, 1024)]);
    assert_eq!(rig.count("cut"), Some(1100 - 512 + 2 + 256));
}

#[test]
fn a_failure_of_the_host_is_counted_and_told_and_the_device_goes_on() {
    let dma = Plain::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
    let ledger = Ledger { runs: Arc::default(), granule: 1, fails: true };
    let mut rig = Rig::on(dma, USUAL, Box::new(ledger), 0x1000);
    rig.name(INFLATE, &[4, 5], DATA);
    rig.name(DEFLATE, &[4], DATA);
    assert_eq!((rig.count("failed"), rig.device.report().broken), (Some(3), None));
    let told = rig.device.with(|balloon: &mut Balloon| {
        (balloon.failure().map(str::to_owned), crate::virtio::device::ConfigIs::Same)
    });
    assert_eq!(told.unwrap().unwrap(), "out of order");
}

#[test]
fn free_memory_is_given_back_by_whole_pages_and_never_touched() {
    let (mut rig, ledger) = plain(USUAL, 1);
    // Most of it is not even there on this memory: a device that looked at it would break.
    let buffers = [
        Buffer::writable(0x20_0000, 0x4000),
        Buffer::writable(0x30_0800, 0x1800),
        Buffer::writable(0x30_2fff, 0x1000),
        Buffer::writable(16 << 20, 2 << 20),
    ];
    rig.dma.view().write_slice(&[0xa5; 0x4000], GuestAddress(0x20_0000)).unwrap();
    rig.begin(REPORTING, &buffers);
    assert_eq!(rig.end(REPORTING), 0);
    assert_eq!(ledger.take(), [Gave(0x200, 4), Gave(0x301, 1), Gave(0x1000, 512)]);
    let mut bytes = [0; 0x4000];
    rig.dma.view().read_slice(&mut bytes, GuestAddress(0x20_0000)).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0xa5));
    assert_eq!(rig.counts(["reported", "ignored"]), [517, 0]);
}

#[test]
fn of_a_report_of_more_than_a_gib_the_rest_is_ignored() {
    let (mut rig, ledger) = plain(USUAL, 1);
    rig.begin(REPORTING, &[Buffer::writable(0, 3 << 29), Buffer::writable(1 << 31, 4096)]);
    rig.end(REPORTING);
    assert_eq!(ledger.take(), [Gave(0, 1 << 18)]);
    assert_eq!(rig.counts(["reported", "ignored"]), [1 << 18, (1 << 17) + 1]);
}

#[test]
fn lists_that_are_none_break_the_device_and_a_reset_mends_it() {
    let long = (MOST_NAMED * 4 + 4) as u32;
    for (queue, buffers, says) in [
        (INFLATE, vec![Buffer::readable(DATA, 5)], "is no list of page numbers"),
        (DEFLATE, vec![Buffer::writable(DATA, 4)], "is no list of page numbers"),
        (INFLATE, vec![Buffer::readable(DATA, long)], "names 16385 pages"),
        (INFLATE, vec![Buffer::readable(1 << 40, 8)], "0x10000000000"),
        (STATISTICS, vec![Buffer::readable(DATA, 11)], "is no list of statistics"),
        (REPORTING, vec![Buffer::readable(DATA, 4096)], "reports memory to read"),
    ] {
        let (mut rig, ledger) = plain(USUAL, 1);
        rig.begin(queue, &buffers);
        let why = rig.broken();
        assert!(why.contains(says), "{why}");
        assert_eq!(ledger.take(), []);
        rig.driver.write(0x70, 0);
        rig.dma.view().write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
        rig.driver.bring_up(0x1000, 16);
        rig.name(INFLATE, &[6], DATA);
        assert_eq!(ledger.take(), [Gave(6, 1)]);
    }
}

fn pairs(pairs: &[(u16, u64)]) -> Vec<u8> {
    pairs
        .iter()
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
        .collect()
}

/// Puts statistics.
fn tell(rig: &mut Rig<Plain>, told: &[(u16, u64)]) {
    let bytes = pairs(told);
    rig.dma.view().write_slice(&bytes, GuestAddress(DATA)).unwrap();
    rig.begin(STATISTICS, &[Buffer::readable(DATA, bytes.len() as u32)]);
}

#[test]
fn statistics_are_kept_by_name_and_asked_for_again_after_a_while() {
    let (mut rig, _) = plain(USUAL, 1);
    let begin = Instant::now();
    tell(&mut rig, &[(4, 1000), (5, 4000), (999, 7), (8, u64::MAX)]);
    assert_eq!(rig.end(STATISTICS), 0);
    assert!(begin.elapsed() >= Duration::from_millis(20), "not before they are wanted again");
    assert_eq!(
        rig.counts(["guest_free_bytes", "guest_total_bytes", "guest_hugetlb_allocated"]),
        [1000, 4000, u64::MAX]
    );
    assert_eq!(rig.count("guest_major_faults"), None);
    // More than are wanted, and more than there are tags for.
    tell(&mut rig, &[(4, 2000); 100]);
    rig.end(STATISTICS);
    assert_eq!((rig.count("guest_free_bytes"), rig.count("guest_total_bytes")), (Some(2000), None));
    tell(&mut rig, &[(4, 3000)]);
    tell(&mut rig, &[(4, 3000)]);
    let begin = Instant::now();
    rig.end(STATISTICS);
    rig.end(STATISTICS);
    assert!(begin.elapsed() >= Duration::from_millis(30), "one is held at a time");
    assert_eq!(rig.count("statistics"), Some(4));
}

#[test]
fn the_target_is_the_hosts_to_set_and_the_rest_the_drivers_to_tell() {
    let (mut rig, _) = plain(USUAL, 1);
    let config = |rig: &mut Rig<Plain>| {
        let mut space = [0xff; 16];
        rig.driver.config(0, &mut space);
        let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        [word(0), word(4), word(8), word(12)]
    };
    assert_eq!(config(&mut rig), [100, 0, 0, 0]);
    rig.driver.write(0x100, 55);
    rig.driver.write(0x104, 60);
    assert_eq!(config(&mut rig), [100, 60, 0, 0]);
    let (generation, before) = (rig.driver.read(0xfc), rig.device.report().interrupts);
    let set = |rig: &Rig<Plain>, pages| {
        rig.device.with(|balloon: &mut Balloon| ((), balloon.set_target(pages))).unwrap();
    };
    set(&rig, 300);
    assert_eq!(config(&mut rig), [300, 60, 0, 0]);
    assert_eq!(rig.driver.read(0x60) & 2, 2, "the driver is told of a new configuration");
    assert_ne!(rig.driver.read(0xfc), generation);
    set(&rig, 300);
    assert_eq!(rig.device.report().interrupts, before + 1, "once is enough");
    assert_eq!(rig.counts(["target_pages", "actual_pages"]), [300, 60]);
}

#[test]
fn what_is_not_configured_is_not_offered_and_has_no_queue() {
    let none = Shape { target: 0, deflate_on_oom: false, reporting: false, statistics: None };
    for (shape, features, queues) in [
        (none, 0, 2),
        (Shape { reporting: true, ..none }, F_REPORTING, 3),
        (Shape { statistics: USUAL.statistics, ..none }, F_STATS_VQ, 3),
        (USUAL, F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING, 4),
    ] {
        let (mut rig, ledger) = plain(shape, 1);
        let own = rig.driver.offered() & 0xff_ffff;
        assert_eq!((own, rig.device.kicks().len()), (features, queues), "{shape:?}");
        if queues == 3 && features == F_REPORTING {
            rig.begin(2, &[Buffer::writable(0x5000, 4096)]);
            rig.end(2);
            assert_eq!(ledger.take(), [Gave(5, 1)]);
        }
    }
}

#[test]
fn a_driver_that_wants_no_statistics_reports_on_the_queue_before() {
    let (mut rig, ledger) = plain(USUAL, 1);
    let features = rig.driver.offered() & !F_STATS_VQ;
    rig.dma.view().write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
    assert!(rig.driver.negotiate(features));
    let mut base = 0x1000;
    for _ in 0..3 {
        let rings = crate::virtio::driver::Rings::at(base, 16);
        rig.driver.add_queue(rings);
        base = rings.end().next_multiple_of(4096);
    }
    rig.driver.go();
    rig.begin(2, &[Buffer::writable(0x5000, 4096)]);
    rig.end(2);
    assert_eq!(ledger.take(), [Gave(5, 1)]);
}

#[test]
fn a_balloon_that_was_saved_goes_on_where_it_was() {
    let slow = Shape { statistics: Some(Duration::from_millis(300)), ..USUAL };
    let (mut rig, ledger) = plain(slow, 1);
    rig.driver.write(0x104, 60);
    tell(&mut rig, &[(4, 1000)]);
    let begin = Instant::now();
    while rig.count("statistics") == Some(0) {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    rig.device.quiesce(Instant::now() + PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(350));
    assert_eq!(rig.driver.poll(&rig.dma.view(), STATISTICS), None, "it rests");
    let text = serde_json::to_string(&rig.device.save()).unwrap();

    let other = device(&rig.dma, Shape { target: 1, ..slow }, Box::new(ledger.clone()));
    rig._threads = Threads::start(&[Arc::clone(&other)], 1).unwrap();
    other.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    rig.device = Arc::clone(&other);
    other.resume();
    assert_eq!(rig.end(STATISTICS), 0, "the buffer that was held is given back");
    let counts = rig.counts(["target_pages", "actual_pages", "guest_free_bytes"]);
    assert_eq!(counts, [100, 60, 1000]);

    let mut state = rig.device.save();
    state.model.version = 99;
    let refused = rig.device.restore(&state).unwrap_err().to_string();
    assert!(refused.contains("version 99"), "{refused}");
}

#[test]
fn a_reset_ends_the_balloon_and_holds_nothing() {
    let (mut rig, _) = plain(USUAL, 1);
    for _ in 0..20 {
        rig.driver.write(0x104, 60);
        tell(&mut rig, &[(4, 1000)]);
        rig.driver.write(0x70, 0);
        assert_eq!(rig.driver.status(), 0);
        assert_eq!(rig.count("actual_pages"), Some(0));
        rig.dma.view().write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
        rig.driver.bring_up(0x1000, 16);
    }
    tell(&mut rig, &[(4, 1000)]);
    rig.end(STATISTICS);
}
