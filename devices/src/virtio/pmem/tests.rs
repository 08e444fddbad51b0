//! Persistent memory worked by the driver of this crate, its thread running.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dma::{Dma, Plain};
use crate::virtio::device::Device;
use crate::virtio::driver::{Buffer, Driver};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::thread::Threads;

use super::Pmem;
use super::host::{Ephemeral, Store};
use super::wire::{QUEUE_SIZE, Region};

const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x10_1000;
const REGION: Region = Region { start: 5 << 30, size: 6 << 20 };
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts, and fails every second time.
#[derive(Debug)]
struct Moody(Arc<AtomicU64>);

impl Store for Moody {
    fn flush(&mut self) -> io::Result<()> {
        match self.0.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Ok(()),
            _ => Err(io::Error::other("not today")),
        }
    }
}

struct Rig {
    dma: Plain,
    device: Arc<Device<Plain>>,
    driver: Driver<Plain>,
    _threads: Threads,
}

fn device(dma: &Plain, region: Region, store: Box<dyn Store>) -> Arc<Device<Plain>> {
    let model = Box::new(Pmem::new(region, store));
    Arc::new(Device::new("pmem", dma.clone(), model, Interrupt::default()).unwrap())
}

impl Rig {
    fn new(store: Box<dyn Store>) -> Rig {
        let dma = Plain::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
        let device = device(&dma, REGION, store);
        let _threads = Threads::start(&[Arc::clone(&device)], 1).unwrap();
        let mut driver = Driver::new(Arc::clone(&device));
        assert!(driver.bring_up(0x1000, QUEUE_SIZE) <= REQUEST);
        Rig { dma, device, driver, _threads }
    }

    fn begin(&mut self, kind: u32, buffers: &[Buffer]) {
        let view = self.dma.view();
        view.write_obj(kind.to_le(), GuestAddress(REQUEST)).unwrap();
        view.write_obj(u32::MAX, GuestAddress(ANSWER)).unwrap();
        self.driver.add(&view, 0, buffers).unwrap();
        self.driver.kick(0);
    }

    fn end(&mut self) -> (u32, u32) {
        let begin = Instant::now();
        loop {
            let view = self.dma.view();
            if let Some((_, written)) = self.driver.poll(&view, 0) {
                return (view.read_obj(GuestAddress(ANSWER)).unwrap(), written);
            }
            assert!(begin.elapsed() < PATIENCE, "no answer: {:?}", self.device.report());
            std::thread::yield_now();
        }
    }

    fn ask(&mut self, kind: u32) -> (u32, u32) {
        self.begin(kind, &[Buffer::readable(REQUEST, 4), Buffer::writable(ANSWER, 4)]);
        self.end()
    }

    fn count(&self, name: &str) -> u64 {
        self.device.report().counts.iter().find(|count| count.0 == name).unwrap().1
    }
}

#[test]
fn the_driver_is_told_where_the_memory_is() {
    let mut rig = Rig::new(Box::new(Ephemeral));
    let mut space = [0xff; 24];
    rig.driver.config(0, &mut space);
    assert_eq!(space[..8], (5_u64 << 30).to_le_bytes());
    assert_eq!(space[8..16], (6_u64 << 20).to_le_bytes());
    assert_eq!(space[16..], [0; 8]);
    assert_eq!(rig.driver.read(0x08), 27, "its number");
}

#[test]
fn a_flush_is_answered_by_what_the_host_says_of_it() {
    let flushes = Arc::new(AtomicU64::new(0));
    let mut rig = Rig::new(Box::new(Moody(Arc::clone(&flushes))));
    assert_eq!(rig.ask(0), (0, 4));
    assert_eq!(rig.ask(0), (1, 4));
    assert_eq!(flushes.load(Ordering::Relaxed), 2);
    assert_eq!((rig.count("flushes"), rig.count("failed")), (2, 1));
    let mut rig = Rig::new(Box::new(Ephemeral));
    assert_eq!([rig.ask(0), rig.ask(0)], [(0, 4), (0, 4)]);
}

#[test]
fn a_request_that_is_not_known_fails_and_a_word_may_be_cut() {
    let mut rig = Rig::new(Box::new(Ephemeral));
    assert_eq!(rig.ask(7), (1, 4));
    let cut = [
        Buffer::readable(REQUEST, 1),
        Buffer::readable(REQUEST + 1, 3),
        Buffer::writable(ANSWER, 2),
        Buffer::writable(ANSWER + 2, 2),
    ];
    rig.begin(0, &cut);
    assert_eq!(rig.end(), (0, 4));
    assert_eq!((rig.count("flushes"), rig.count("unknown")), (1, 1));
}

#[test]
fn what_is_no_request_breaks_the_device_and_a_reset_mends_it() {
    for buffers in [
        vec![Buffer::readable(REQUEST, 4)],
        vec![Buffer::writable(ANSWER, 4)],
        vec![Buffer::readable(REQUEST, 8), Buffer::writable(ANSWER, 4)],
        vec![Buffer::readable(REQUEST, 4), Buffer::writable(ANSWER, u32::MAX)],
        vec![Buffer::readable(REQUEST, 4), Buffer::writable(1 << 40, 4)],
    ] {
        let mut rig = Rig::new(Box::new(Ephemeral));
        rig.begin(0, &buffers);
        let begin = Instant::now();
        while rig.device.report().broken.is_none() {
            assert!(begin.elapsed() < PATIENCE, "{buffers:?}");
            std::thread::yield_now();
        }
        rig.driver.write(0x70, 0);
        rig.dma.view().write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
        rig.driver.bring_up(0x1000, QUEUE_SIZE);
        assert_eq!(rig.ask(0), (0, 4));
    }
}

#[test]
fn memory_that_was_saved_goes_on_and_only_where_it_was() {
    let mut rig = Rig::new(Box::new(Ephemeral));
    rig.device.quiesce(Instant::now() + PATIENCE).unwrap();
    rig.begin(0, &[Buffer::readable(REQUEST, 4), Buffer::writable(ANSWER, 4)]);
    let state = rig.device.save();
    let other = device(&rig.dma, Region { start: 6 << 30, ..REGION }, Box::new(Ephemeral));
    let refused = other.restore(&state).unwrap_err().to_string();
    assert!(refused.contains("0x600000 bytes at 0x140000000"), "{refused}");
    let other = device(&rig.dma, REGION, Box::new(Ephemeral));
    rig._threads = Threads::start(&[Arc::clone(&other)], 1).unwrap();
    other.restore(&state).unwrap();
    rig.device = Arc::clone(&other);
    other.resume();
    assert_eq!(rig.end(), (0, 4));
}
