//! A disk worked by the driver of this crate, its thread running, on both kinds of memory and both engines.

mod arrivals;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dma::{Dma, Plain};
use crate::virtio::device::Device;
use crate::virtio::driver::{Buffer, Driver};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::rate::{Limit, Limiter};
use crate::virtio::thread::Threads;

use super::Blk;
use super::host::{Engine, host, open};
use super::wire::{SECTOR, Shape};

/// Bytes of the disk, and of the guest.
const DISK: u64 = 1 << 20;
const RAM: usize = 4 << 20;
/// A request's header, its status, and its data in the guest.
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x10_1000;
const DATA: u64 = 0x20_0000;

struct Rig {
    dma: Plain,
    device: Arc<Device<Plain>>,
    driver: Driver<Plain>,
    threads: Threads,
    file: NamedTempFile,
}

#[derive(Clone, Copy)]
struct Kindly {
    engine: Engine,
    read_only: bool,
    bytes_a_second: Option<u64>,
}

const USUAL: Kindly = Kindly { engine: Engine::Auto, read_only: false, bytes_a_second: None };

fn blk(dma: &Plain, file: &NamedTempFile, how: Kindly) -> Blk<Plain> {
    let shape = Shape {
        sectors: DISK / SECTOR,
        read_only: how.read_only,
        discard: true,
        queues: 1,
        queue_size: 16,
    };
    let opened = open(file.path(), how.read_only).unwrap();
    let host = host(opened, how.engine, Blk::<Plain>::depth(&shape)).unwrap();
    let limit = how.bytes_a_second.map(|per_second| Limit { per_second });
    Blk::new(dma, shape, "a disk", host, Limiter::new(limit, None)).unwrap()
}

impl Rig {
    fn new(how: Kindly) -> Rig {
        let file = NamedTempFile::new().unwrap();
        let pattern: Vec<u8> = (0..DISK).map(|at| (at / SECTOR * 7 + at) as u8).collect();
        file.as_file().write_all(&pattern).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let dma = Plain::new(memory);
        let model = blk(&dma, &file, how);
        let device =
            Device::new("disk", dma.clone(), Box::new(model), Interrupt::default()).unwrap();
        let device = Arc::new(device);
        let threads = Threads::start(&[Arc::clone(&device)], 1).unwrap();
        let mut driver = Driver::new(Arc::clone(&device));
        assert!(driver.bring_up(0x1000, 16) <= HEADER);
        Rig { dma, device, driver, threads, file }
    }

    /// Puts a request and kicks.
    fn begin(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u16 {
        let view = self.dma.view();
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        view.write_slice(&header, GuestAddress(HEADER)).unwrap();
        view.write_obj(0xff_u8, GuestAddress(STATUS)).unwrap();
        let mut buffers = vec![Buffer::readable(HEADER, 16)];
        buffers.extend_from_slice(data);
        buffers.push(Buffer::writable(STATUS, 1));
        let head = self.driver.add(&view, 0, &buffers).unwrap();
        self.driver.kick(0);
        head
    }

    /// Waits for the end of the next request: its status, and the bytes that were written.
    fn end(&mut self) -> (u8, u32) {
        let begin = Instant::now();
        loop {
            let view = self.dma.view();
            if let Some((_, written)) = self.driver.poll(&view, 0) {
                return (view.read_obj(GuestAddress(STATUS)).unwrap(), written);
            }
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "no answer: {:?}",
                self.device.report()
            );
            std::thread::yield_now();
        }
    }

    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.begin(kind, sector, data);
        self.end()
    }

    fn disk(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma.view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

#[test]
fn what_is_read_is_what_the_file_holds_however_it_is_cut_into_buffers() {
    for engine in [Engine::Uring, Engine::Sync] {
        let mut rig = Rig::new(Kindly { engine, ..USUAL });
        let data = [Buffer::writable(DATA + 5, 700), Buffer::writable(DATA + 0x8000, 4096 - 700)];
        assert_eq!(rig.ask(IN, 3, &data), (0, 4097), "{engine:?}");
        let mut read = rig.memory(DATA + 5, 700);
        read.extend(rig.memory(DATA + 0x8000, 4096 - 700));
        assert!(read == rig.disk()[3 * 512..3 * 512 + 4096], "{engine:?}");
    }
}

#[test]
fn what_is_written_is_in_the_file_and_flushes_answer() {
    for engine in [Engine::Uring, Engine::Sync] {
        let mut rig = Rig::new(Kindly { engine, ..USUAL });
        let before = rig.disk();
        rig.dma.view().write_slice(&[0xa5; 1024], GuestAddress(DATA)).unwrap();
        assert_eq!(rig.ask(OUT, 8, &[Buffer::readable(DATA, 1024)]), (0, 1));
        assert_eq!(rig.ask(FLUSH, 0, &[]), (0, 1));
        let disk = rig.disk();
        assert!(disk[8 * 512..10 * 512].iter().all(|&byte| byte == 0xa5));
        assert!(disk[..8 * 512] == before[..8 * 512] && disk[10 * 512..] == before[10 * 512..]);
    }
}

#[test]
fn ranges_are_zeroed_and_discarded_and_nothing_beside_them() {
    for kind in [DISCARD, WRITE_ZEROES] {
        let mut rig = Rig::new(USUAL);
        let before = rig.disk();
        let mut ranges = Vec::new();
        for (sector, sectors) in [(8_u64, 8_u32), (64, 16)] {
            ranges.extend(sector.to_le_bytes());
            ranges.extend(sectors.to_le_bytes());
            ranges.extend(0_u32.to_le_bytes());
        }
        rig.dma.view().write_slice(&ranges, GuestAddress(DATA)).unwrap();
        assert_eq!(rig.ask(kind, 0, &[Buffer::readable(DATA, 32)]).0, 0);
        let disk = rig.disk();
        for (sector, chunk) in disk.chunks(512).enumerate() {
            let gone = (8..16).contains(&sector) || (64..80).contains(&sector);
            let kept = chunk == &before[sector * 512..][..512];
            assert_eq!(gone, chunk.iter().all(|&byte| byte == 0) && !kept, "sector {sector}");
        }
        // A flag that there is not; behind the end.
        for (flags, sector, status) in [(2_u32, 0_u64, 2), (0, DISK / 512, 1)] {
            ranges[12..16].copy_from_slice(&flags.to_le_bytes());
            ranges[..8].copy_from_slice(&sector.to_le_bytes());
            rig.dma.view().write_slice(&ranges, GuestAddress(DATA)).unwrap();
            assert_eq!(rig.ask(kind, 0, &[Buffer::readable(DATA, 16)]).0, status);
        }
    }
}

#[test]
fn the_name_is_told_and_what_is_unknown_is_refused() {
    let mut rig = Rig::new(USUAL);
    assert_eq!(rig.ask(GET_ID, 0, &[Buffer::writable(DATA, 20)]), (0, 21));
    assert_eq!(&rig.memory(DATA, 7), b"a disk\0");
    assert_eq!(rig.ask(99, 0, &[Buffer::writable(DATA, 20)]), (2, 1));
}

#[test]
fn sectors_behind_the_end_and_parts_of_sectors_are_errors_that_the_driver_is_told() {
    let mut rig = Rig::new(USUAL);
    for (sector, len) in [(DISK / 512, 512), (DISK / 512 - 1, 1024), (u64::MAX, 512), (0, 100)] {
        assert_eq!(rig.ask(IN, sector, &[Buffer::writable(DATA, len)]).0, 1, "{sector}, {len}");
    }
    assert_eq!(rig.ask(IN, DISK / 512 - 1, &[Buffer::writable(DATA, 512)]).0, 0);
    assert_eq!(rig.device.report().broken, None);
}

#[test]
fn memory_that_is_not_there_is_named_by_what_was_to_be_done_with_it() {
    let outside = RAM as u64;
    let (header, status) = (Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 1));
    for (kind, request, says) in [
        (IN, &[Buffer::readable(outside, 16), status][..], "Read of 16 bytes"),
        (IN, &[header, Buffer::writable(outside, 512), status], "Write of 512 bytes"),
        (DISCARD, &[header, Buffer::readable(outside, 32), status], "Read of 32 bytes"),
        (GET_ID, &[header, Buffer::writable(outside, 20), status], "Write of 20 bytes"),
        (FLUSH, &[header, Buffer::writable(outside, 1)], "Write of 1 bytes"),
    ] {
        let mut rig = Rig::new(USUAL);
        let view = rig.dma.view();
        view.write_obj(u64::from(kind), GuestAddress(HEADER)).unwrap();
        view.write_obj(0_u64, GuestAddress(HEADER + 8)).unwrap();
        rig.driver.add(&view, 0, request).unwrap();
        rig.driver.kick(0);
        let begin = Instant::now();
        let broken = loop {
            if let Some(broken) = rig.device.report().broken {
                break broken;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{says}: it was answered");
            std::thread::yield_now();
        };
        let expected = format!("queue 0: {says} at guest-physical {outside:#x}: ");
        assert!(broken.starts_with(&expected), "{broken}");
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut rig = Rig::new(Kindly { read_only: true, ..USUAL });
    assert_ne!(rig.driver.offered() & 1 << 5, 0, "VIRTIO_BLK_F_RO");
    let before = rig.disk();
    assert_eq!(rig.ask(OUT, 0, &[Buffer::readable(DATA, 512)]).0, 1);
    assert_eq!(rig.ask(IN, 0, &[Buffer::writable(DATA, 512)]).0, 0);
    assert!(rig.disk() == before);
}

#[test]
fn a_file_that_became_shorter_is_an_error_of_that_request() {
    for engine in [Engine::Uring, Engine::Sync] {
        let mut rig = Rig::new(Kindly { engine, ..USUAL });
        rig.file.as_file().set_len(DISK / 2).unwrap();
        let across = DISK / 512 / 2 - 1;
        assert_eq!(rig.ask(IN, across, &[Buffer::writable(DATA, 1024)]).0, 1);
        assert_eq!(rig.ask(IN, 0, &[Buffer::writable(DATA, 1024)]).0, 0);
    }
}

#[test]
fn a_rate_holds_requests_up_and_loses_none() {
    let mut rig = Rig::new(Kindly { bytes_a_second: Some(64 << 10), ..USUAL });
    let begin = Instant::now();
    // The first two are a second's; the third waits for half of one, as the second was larger than what was left.
    for len in [48_u32 << 10, 48 << 10, 512] {
        assert_eq!(rig.ask(IN, 0, &[Buffer::writable(DATA, len)]).0, 0);
    }
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(400), "{took:?}");
    let report = rig.device.report();
    assert!(
        report.counts.iter().any(|&(name, count)| name == "held_up" && count > 0),
        "{report:?}"
    );
}

#[test]
fn a_disk_that_was_saved_goes_on_where_it_was() {
    let mut rig = Rig::new(USUAL);
    assert_eq!(rig.ask(IN, 0, &[Buffer::writable(DATA, 512)]).0, 0);
    rig.device.quiesce(Instant::now() + Duration::from_secs(5)).unwrap();
    // A request that comes while it rests waits.
    let head = rig.begin(IN, 9, &[Buffer::writable(DATA, 512)]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.driver.poll(&rig.dma.view(), 0), None);
    let state = rig.device.save();
    let text = serde_json::to_string(&state).unwrap();

    // Another device on the same memory and file: the old one's driver does not notice.
    let model = blk(&rig.dma, &rig.file, USUAL);
    let other =
        Device::new("disk", rig.dma.clone(), Box::new(model), Interrupt::default()).unwrap();
    let other = Arc::new(other);
    rig.threads = Threads::start(&[Arc::clone(&other)], 1).unwrap();
    other.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    rig.device = Arc::clone(&other);
    assert_eq!(rig.driver.poll(&rig.dma.view(), 0), None, "it rests until it is resumed");
    other.resume();
    assert_eq!(rig.end(), (0, 513));
    let _ = head;
    assert!(rig.memory(DATA, 512) == rig.disk()[9 * 512..10 * 512]);
}

#[test]
fn a_state_of_another_kind_or_size_is_refused_by_name() {
    let rig = Rig::new(USUAL);
    rig.device.quiesce(Instant::now() + Duration::from_secs(5)).unwrap();
    let good = rig.device.save();
    let mut kind = good.clone();
    kind.device_type = 1;
    let mut version = good.clone();
    version.version = 99;
    let mut model = good.clone();
    model.model.version = 99;
    let mut size = good.clone();
    size.model.body["sectors"] = 7.into();
    let mut queues = good.clone();
    queues.queues.clear();
    for (state, says) in [
        (kind, "of a device of type 1"),
        (version, "version 99"),
        (model, "version 99"),
        (size, "7 sectors"),
        (queues, "0 queues"),
    ] {
        let text = rig.device.restore(&state).unwrap_err().to_string();
        assert!(text.starts_with("disk: ") && text.contains(says), "{text}");
    }
}

/// A read that has to wait for the disk ends in the name of the thread that began it, and not in that of a worker of the
/// kernel's: an event that tells of workers alone would be silent.
#[test]
fn a_read_that_waits_for_the_disk_is_answered_without_another_kick() {
    let mut rig = Rig::new(USUAL);
    let file = rig.file.as_file();
    file.sync_all().unwrap();
    for at in 0..20 {
        // Nothing happens where the file lies in memory.
        let _ = rustix::fs::fadvise(&rig.file, 0, None, rustix::fs::Advice::DontNeed);
        assert_eq!(rig.ask(IN, at * 64, &[Buffer::writable(DATA, 4096)]), (0, 4097));
        assert!(rig.memory(DATA, 4096) == rig.disk()[at as usize * 64 * 512..][..4096]);
    }
}

#[test]
fn a_reset_leaves_nothing_under_way_and_the_disk_works_again() {
    let mut rig = Rig::new(USUAL);
    for _ in 0..50 {
        for at in 0..5 {
            rig.begin(IN, at, &[Buffer::writable(DATA + at * 0x10000, 65536)]);
        }
        rig.driver.write(0x70, 0);
        assert_eq!(rig.driver.status(), 0);
        rig.dma.view().write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
        rig.driver.bring_up(0x1000, 16);
        assert_eq!(rig.ask(IN, 0, &[Buffer::writable(DATA, 512)]), (0, 513));
    }
}

/// A file of which nothing ever ends.
#[derive(Debug, Default)]
struct Stuck(Arc<std::sync::atomic::AtomicBool>, Vec<u32>);

impl super::host::Host for Stuck {
    #[allow(unsafe_code, reason = "the trait's")]
    unsafe fn begin(
        &mut self,
        slot: u32,
        _operation: super::host::Operation,
        _offset: u64,
        _buffers: &[libc::iovec],
    ) -> std::io::Result<()> {
        self.1.push(slot);
        Ok(())
    }

    fn submit(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn reap(&mut self) -> Option<super::host::Ended> {
        let let_go = self.0.load(std::sync::atomic::Ordering::Relaxed);
        let_go.then(|| self.1.pop())?.map(|slot| super::host::Ended { slot, result: -libc::EIO })
    }

    fn event(&self) -> Option<std::os::fd::RawFd> {
        None
    }
}

#[test]
fn a_device_that_does_not_come_to_rest_is_named_with_its_oldest_request_and_goes_on() {
    let mut rig = Rig::new(USUAL);
    let stuck = Stuck::default();
    let let_go = Arc::clone(&stuck.0);
    let shape = Shape { sectors: 64, read_only: false, discard: false, queues: 1, queue_size: 16 };
    let model = Blk::new(&rig.dma, shape, "x", Box::new(stuck), Limiter::new(None, None)).unwrap();
    let device = Device::new("disk.slow", rig.dma.clone(), Box::new(model), Interrupt::default());
    rig.device = Arc::new(device.unwrap());
    rig.threads = Threads::start(&[Arc::clone(&rig.device)], 1).unwrap();
    rig.driver = Driver::new(Arc::clone(&rig.device));
    rig.dma.view().write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
    rig.driver.bring_up(0x1000, 16);
    rig.begin(IN, 3, &[Buffer::writable(DATA, 512)]);
    std::thread::sleep(Duration::from_millis(20));
    let restless = rig.device.quiesce(Instant::now() + Duration::from_millis(50)).unwrap_err();
    let text = restless.to_string();
    assert!(
        text.starts_with("disk.slow: 1 request") && text.contains("Read at byte 1536"),
        "{text}"
    );
    // It was resumed: a kick is served, and finds what has ended.
    let_go.store(true, std::sync::atomic::Ordering::Relaxed);
    rig.driver.kick(0);
    assert_eq!(rig.end().0, 1, "the request fails, and is answered");
    rig.device.quiesce(Instant::now() + Duration::from_secs(5)).unwrap();
}
