//! An entropy device worked by the driver of this crate, its thread running.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dma::{Dma, Plain};
use crate::virtio::device::Device;
use crate::virtio::driver::{Buffer, Driver};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::rate::{Limit, Limiter};
use crate::virtio::thread::Threads;

use super::Rng;
use super::host::{Source, URANDOM};

const DATA: u64 = 0x10_0000;
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    dma: Plain,
    device: Arc<Device<Plain>>,
    driver: Driver<Plain>,
    _threads: Threads,
}

fn device(dma: &Plain, source: &Path, per_second: Option<u64>) -> Arc<Device<Plain>> {
    let limiter = Limiter::new(per_second.map(|per_second| Limit { per_second }), None);
    let model = Rng::new(dma, Source::open(source).unwrap(), limiter).unwrap();
    Arc::new(Device::new("rng", dma.clone(), Box::new(model), Interrupt::default()).unwrap())
}

impl Rig {
    fn new(source: &Path, per_second: Option<u64>) -> Rig {
        let dma = Plain::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
        let device = device(&dma, source, per_second);
        let _threads = Threads::start(&[Arc::clone(&device)], 1).unwrap();
        let mut driver = Driver::new(Arc::clone(&device));
        assert!(driver.bring_up(0x1000, 16) <= DATA);
        Rig { dma, device, driver, _threads }
    }

    fn begin(&mut self, buffers: &[Buffer]) {
        self.driver.add(&self.dma.view(), 0, buffers).unwrap();
        self.driver.kick(0);
    }

    fn poll(&mut self) -> Option<u32> {
        self.driver.poll(&self.dma.view(), 0).map(|(_, written)| written)
    }

    fn end(&mut self) -> u32 {
        let begin = Instant::now();
        loop {
            if let Some(written) = self.poll() {
                return written;
            }
            assert!(begin.elapsed() < PATIENCE, "no answer: {:?}", self.device.report());
            std::thread::yield_now();
        }
    }

    fn ask(&mut self, buffers: &[Buffer]) -> u32 {
        self.begin(buffers);
        self.end()
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma.view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn wait_for(&self, name: &str, least: u64) {
        let begin = Instant::now();
        while !self.device.report().counts.iter().any(|count| count.0 == name && count.1 >= least) {
            assert!(begin.elapsed() < PATIENCE, "{name}: {:?}", self.device.report());
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_request_gets_the_sources_bytes_and_no_others_are_touched() {
    let mut rig = Rig::new(Path::new(URANDOM), None);
    assert_eq!(
        rig.ask(&[Buffer::writable(DATA + 3, 100), Buffer::writable(DATA + 0x1000, 28)]),
        128
    );
    let filled = rig.memory(DATA, 0x1000 + 64);
    assert!(filled[3..103].iter().any(|&byte| byte != 0));
    assert!(filled[0x1000..0x1000 + 28].iter().any(|&byte| byte != 0));
    let around = [&filled[..3], &filled[103..0x1000], &filled[0x1000 + 28..]];
    assert!(around.concat().iter().all(|&byte| byte == 0));
    assert_ne!(rig.memory(DATA + 3, 16), {
        rig.ask(&[Buffer::writable(DATA + 3, 16)]);
        rig.memory(DATA + 3, 16)
    });
}

#[test]
fn a_large_request_gets_what_one_answer_may_have() {
    let mut rig = Rig::new(Path::new(URANDOM), None);
    assert_eq!(rig.ask(&[Buffer::writable(DATA, 1 << 20)]), 64 << 10);
    assert!(rig.memory(DATA + (64 << 10), 4096).iter().all(|&byte| byte == 0));
    // More than a turn's worth, and all are answered.
    (0..16).for_each(|_| rig.begin(&[Buffer::writable(DATA, 1 << 20)]));
    (0..16).for_each(|_| assert_eq!(rig.end(), 64 << 10));
}

#[test]
fn a_source_with_little_left_answers_with_that_and_the_next_waits_for_more() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(b"only these").unwrap();
    let mut rig = Rig::new(file.path(), None);
    assert_eq!(rig.ask(&[Buffer::writable(DATA, 64)]), 10);
    assert_eq!(rig.memory(DATA, 10), b"only these");
    rig.begin(&[Buffer::writable(DATA, 64)]);
    rig.wait_for("dry", 2);
    assert_eq!(rig.poll(), None);
    file.write_all(b"more").unwrap();
    assert_eq!(rig.end(), 4);
    assert_eq!(rig.device.report().broken, None);
}

#[test]
fn a_source_that_fails_is_counted_and_asked_again() {
    // A directory can be opened and not be read.
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(folder.path(), None);
    rig.begin(&[Buffer::writable(DATA, 64)]);
    rig.wait_for("failed", 2);
    assert_eq!(rig.poll(), None);
    // Kicks do not make it faster.
    (0..100).for_each(|_| rig.driver.kick(0));
    std::thread::sleep(Duration::from_millis(20));
    let report = rig.device.report();
    assert!(
        report.counts.iter().all(|&(name, count)| name != "failed" || count < 10),
        "{report:?}"
    );
    assert_eq!(report.broken, None);
}

#[test]
fn a_source_that_would_block_does_not_block_the_thread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("entropy");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    let mut rig = Rig::new(&path, None);
    let mut writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    rig.begin(&[Buffer::writable(DATA, 64)]);
    rig.wait_for("dry", 1);
    rig.device.quiesce(Instant::now() + PATIENCE).unwrap();
    writer.write_all(b"entropy").unwrap();
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(rig.poll(), None, "it rests");
    rig.device.resume();
    assert_eq!(rig.end(), 7);
}

#[test]
fn a_rate_holds_requests_up_and_loses_none() {
    let mut rig = Rig::new(Path::new(URANDOM), Some(32 << 10));
    let begin = Instant::now();
    // The first two are a second's and more; the third waits for the half of one that the second took in advance.
    for len in [24_u32 << 10, 24 << 10, 512] {
        assert_eq!(rig.ask(&[Buffer::writable(DATA, len)]), len);
    }
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(400), "{took:?}");
    rig.wait_for("held_up", 1);
}

#[test]
fn memory_to_read_and_memory_that_is_none_break_the_device_until_it_is_reset() {
    let mut rig = Rig::new(Path::new(URANDOM), None);
    for bad in [Buffer::readable(DATA, 64), Buffer::writable(0x7000_0000, 64)] {
        rig.begin(&[bad]);
        let begin = Instant::now();
        while rig.device.report().broken.is_none() {
            assert!(begin.elapsed() < PATIENCE);
        }
        assert_ne!(rig.driver.status() & 0x40, 0, "DEVICE_NEEDS_RESET");
        rig.driver.write(0x70, 0);
        rig.dma.view().write_slice(&[0; 0x4000], GuestAddress(0x1000)).unwrap();
        rig.driver.bring_up(0x1000, 16);
        assert_eq!(rig.ask(&[Buffer::writable(DATA, 64)]), 64);
    }
}

#[test]
fn a_request_that_was_not_answered_is_answered_by_who_is_restored() {
    let empty = NamedTempFile::new().unwrap();
    let mut rig = Rig::new(empty.path(), None);
    rig.begin(&[Buffer::writable(DATA, 64)]);
    rig.wait_for("dry", 1);
    rig.device.quiesce(Instant::now() + PATIENCE).unwrap();
    let state = serde_json::to_string(&rig.device.save()).unwrap();
    let other = device(&rig.dma, Path::new(URANDOM), None);
    let _threads = Threads::start(&[Arc::clone(&other)], 1).unwrap();
    other.restore(&serde_json::from_str(&state).unwrap()).unwrap();
    assert_eq!(rig.poll(), None);
    other.resume();
    assert_eq!(rig.end(), 64);
}
