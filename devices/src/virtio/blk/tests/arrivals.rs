//! A disk of a guest part of whose memory is still elsewhere.

use crate::dma::Pinning;
use crate::dma::elsewhere::{Elsewhere, PAGE, PATIENCE};
use crate::virtio::state::DeviceState;

use super::*;

/// Where a second request has its header, status and data.
const SECOND: u64 = 0x10_8000;
/// Data that is elsewhere at first.
const AWAY: u64 = 0x30_0000;

struct Machine {
    device: Arc<Device<Pinning>>,
    driver: Driver<Pinning>,
    threads: Threads,
    file: NamedTempFile,
    memory: Elsewhere,
}

fn device(memory: &Elsewhere, file: &NamedTempFile) -> (Arc<Device<Pinning>>, Threads) {
    let shape = Shape {
        sectors: DISK / SECTOR,
        read_only: false,
        discard: true,
        queues: 1,
        queue_size: 16,
    };
    let opened = open(file.path(), false).unwrap();
    let host = host(opened, Engine::Auto, Blk::<Pinning>::depth(&shape)).unwrap();
    let dma = memory.dma();
    let model = Blk::new(&dma, shape, "a disk", host, Limiter::new(None, None)).unwrap();
    let device = Arc::new(Device::new("disk", dma, Box::new(model), Interrupt::default()).unwrap());
    let threads = Threads::start(&[Arc::clone(&device)], 1).unwrap();
    (device, threads)
}

impl Machine {
    /// `pages` pages from [`AWAY`] on are elsewhere.
    fn new(pages: u64) -> Machine {
        let file = NamedTempFile::new().unwrap();
        let pattern: Vec<u8> = (0..DISK).map(|at| (at / SECTOR * 7 + at) as u8).collect();
        file.as_file().write_all(&pattern).unwrap();
        let memory = Elsewhere::new();
        memory.leave(AWAY, pages * PAGE);
        let (device, threads) = device(&memory, &file);
        let mut driver = Driver::new(Arc::clone(&device));
        assert!(driver.bring_up(0x1000, 16) <= HEADER);
        Machine { device, driver, threads, file, memory }
    }

    /// Asks for a read from `sector` on, with the header at `at`; its head.
    fn read(&mut self, at: u64, sector: u64, data: &[Buffer]) -> u16 {
        let dma = self.memory.dma();
        let view = dma.view();
        let mut header = [0; 16];
        header[8..].copy_from_slice(&sector.to_le_bytes());
        view.write_slice(&header, GuestAddress(at)).unwrap();
        view.write_obj(0xff_u8, GuestAddress(at + PAGE)).unwrap();
        let mut buffers = vec![Buffer::readable(at, 16)];
        buffers.extend_from_slice(data);
        buffers.push(Buffer::writable(at + PAGE, 1));
        let head = self.driver.add(&view, 0, &buffers).unwrap();
        self.driver.kick(0);
        head
    }

    fn status(&self, at: u64) -> u8 {
        self.memory.dma().view().read_obj(GuestAddress(at + PAGE)).unwrap()
    }

    fn poll(&mut self) -> Option<(u16, u32)> {
        self.driver.poll(&self.memory.dma().view(), 0)
    }

    fn end(&mut self) -> (u16, u32) {
        let begin = Instant::now();
        loop {
            if let Some(end) = self.poll() {
                return end;
            }
            assert!(begin.elapsed() < PATIENCE, "no answer: {:?}", self.device.report());
            std::thread::yield_now();
        }
    }

    fn check(&self, at: u64, sector: u64, len: usize) {
        let mut read = vec![0; len];
        self.memory.dma().view().read_slice(&mut read, GuestAddress(at)).unwrap();
        let disk = std::fs::read(self.file.path()).unwrap();
        assert!(read == disk[sector as usize * 512..][..len]);
    }

    fn close(self) {
        drop(self.threads);
        self.device.retire();
        drop((self.driver, self.device));
        self.memory.close();
    }
}

#[test]
fn a_request_whose_memory_is_elsewhere_asks_for_all_of_it_and_lets_the_others_go_first() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let mut machine = Machine::new(4);
    // Three pages, and one in between that is not of it.
    let data = [Buffer::writable(AWAY + 512, 4096), Buffer::writable(AWAY + 3 * PAGE, 1024)];
    let slow = machine.read(HEADER, 2, &data);
    let asked: Vec<u64> = (0..3).map(|_| machine.memory.asked()).collect();
    assert_eq!(asked, [AWAY, AWAY + PAGE, AWAY + 3 * PAGE], "before any of them has come");
    for sector in [7, 20] {
        let fast = machine.read(SECOND, sector, &[Buffer::writable(DATA, 512)]);
        assert_eq!(machine.end(), (fast, 513));
        machine.check(DATA, sector, 512);
    }
    machine.memory.come(AWAY, 1);
    machine.memory.come(AWAY + 3 * PAGE, 2);
    // A kick in vain asks for nothing again.
    machine.driver.kick(0);
    let fast = machine.read(SECOND, 30, &[Buffer::writable(DATA, 512)]);
    assert_eq!(machine.end(), (fast, 513));
    assert_eq!((machine.poll(), machine.status(HEADER)), (None, 0xff));
    machine.memory.come(AWAY + PAGE, 3);
    assert_eq!((machine.end(), machine.status(HEADER)), ((slow, 5121), 0));
    machine.check(AWAY + 512, 2, 4096);
    machine.check(AWAY + 3 * PAGE, 10, 1024);
    assert!(machine.memory.is_quiet(), "a page is asked for twice");
    let report = machine.device.report();
    assert!(report.counts.contains(&("put_aside", 1)), "{report:?}");
    machine.close();
}

#[test]
fn a_disk_that_rests_leaves_what_waits_and_takes_it_up_again() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let mut machine = Machine::new(1);
    let slow = machine.read(HEADER, 2, &[Buffer::writable(AWAY, 512)]);
    assert_eq!(machine.memory.asked(), AWAY);
    machine.device.quiesce(Instant::now() + PATIENCE).unwrap();
    machine.memory.come(AWAY, 9);
    let mut page = [0; PAGE as usize];
    std::thread::sleep(Duration::from_millis(20));
    machine.memory.dma().view().read_slice(&mut page, GuestAddress(AWAY)).unwrap();
    assert!(page == [9; PAGE as usize] && machine.status(HEADER) == 0xff, "it writes at rest");
    assert_eq!(machine.poll(), None);
    machine.device.resume();
    assert_eq!((machine.end(), machine.status(HEADER)), ((slow, 513), 0));
    machine.check(AWAY, 2, 512);
    machine.close();
}

#[test]
fn what_waits_is_saved_and_answered_by_the_disk_that_is_restored() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let mut machine = Machine::new(2);
    let slow = machine.read(HEADER, 2, &[Buffer::writable(AWAY, 512)]);
    assert_eq!(machine.memory.asked(), AWAY);
    let fast = machine.read(SECOND, 5, &[Buffer::writable(DATA, 512)]);
    assert_eq!(machine.end(), (fast, 513));
    machine.device.quiesce(Instant::now() + PATIENCE).unwrap();
    let text = serde_json::to_string(&machine.device.save()).unwrap();
    machine.device.retire();
    let state: DeviceState = serde_json::from_str(&text).unwrap();
    let (other, threads) = device(&machine.memory, &machine.file);
    other.restore(&state).unwrap();
    other.resume();
    assert_eq!(machine.memory.asked(), AWAY, "it is asked for anew");
    machine.memory.come(AWAY, 9);
    assert_eq!((machine.end(), machine.status(HEADER)), ((slow, 513), 0));
    machine.check(AWAY, 2, 512);
    // What no driver can have done is refused.
    let mut bad = state.clone();
    bad.model.body["aside"][0]["queue"] = 1.into();
    let refused = other.restore(&bad).unwrap_err().to_string();
    assert!(refused.contains("no driver of it can have made"), "{refused}");
    (machine.device, machine.threads) = (other, threads);
    machine.close();
}

#[test]
fn a_reset_forgets_what_waits_and_nothing_of_it_is_written() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let mut machine = Machine::new(1);
    machine.read(HEADER, 2, &[Buffer::writable(AWAY, 512)]);
    assert_eq!(machine.memory.asked(), AWAY);
    machine.driver.write(0x70, 0);
    assert_eq!(machine.driver.status(), 0, "a reset waits for memory");
    machine.memory.come(AWAY, 9);
    machine.memory.dma().view().write_slice(&[0; 0x2000], GuestAddress(0x1000)).unwrap();
    machine.driver.bring_up(0x1000, 16);
    let head = machine.read(SECOND, 5, &[Buffer::writable(DATA, 512)]);
    assert_eq!(machine.end(), (head, 513));
    let first: u8 = machine.memory.dma().view().read_obj(GuestAddress(AWAY)).unwrap();
    assert_eq!((first, machine.status(HEADER), machine.poll()), (9, 0xff, None));
    machine.close();
}

#[test]
fn memory_that_never_comes_breaks_the_disk_and_a_reset_mends_it() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let mut machine = Machine::new(1);
    machine.read(HEADER, 2, &[Buffer::writable(AWAY, 512)]);
    assert_eq!(machine.memory.asked(), AWAY);
    machine.memory.lose(AWAY, PAGE);
    let begin = Instant::now();
    while machine.device.report().broken.is_none() {
        assert!(begin.elapsed() < PATIENCE, "it waits for ever");
        std::thread::yield_now();
    }
    let broken = machine.device.report().broken.unwrap();
    assert!(broken.contains("never will"), "{broken}");
    machine.memory.dma().view().write_slice(&[0; 0x2000], GuestAddress(0x1000)).unwrap();
    machine.driver.bring_up(0x1000, 16);
    let head = machine.read(SECOND, 5, &[Buffer::writable(DATA, 512)]);
    assert_eq!(machine.end(), (head, 513));
    machine.close();
}
