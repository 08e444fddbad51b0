//! A network device worked by the driver of this crate, its thread running, over pairs of sockets in place of an interface.

mod commands;
mod fake;
mod frames;
mod nonsense;
mod rest;
mod tap;

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dma::{Dma, Plain};
use crate::virtio::device::Device;
use crate::virtio::driver::{Buffer, Driver, Rings};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::thread::Threads;

use super::host::Host;
use super::{Config, Net};

use fake::Fake;

const RAM: usize = 16 << 20;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Rings, and buffers: a place for each.
const RINGS: u64 = 0x1000;
const BUFFERS: u64 = 0x10_0000;
const PLACE: u64 = 0x2_0000;
/// Features that tests leave out.
const GUEST_TSO4: u64 = 1 << 7;
const MRG_RXBUF: u64 = 1 << 15;
const EVENT_IDX: u64 = 1 << 29;

struct Rig {
    dma: Plain,
    device: Arc<Device<Plain>>,
    driver: Driver<Plain>,
    threads: Threads,
    /// Where the buffer of each head of a receive queue is, by queue.
    posted: Vec<Vec<(u16, u64, u32)>>,
    place: u64,
}

fn device(dma: &Plain, pairs: u16, host: Box<dyn Host>) -> Arc<Device<Plain>> {
    let config = Config { mac: MAC, queues: pairs, queue_size: 64, offloads: true };
    let model = Net::new(dma, config, host).unwrap();
    Arc::new(Device::new("net", dma.clone(), Box::new(model), Interrupt::default()).unwrap())
}

impl Rig {
    /// A device over `host`, whose driver accepts all but `without`, with queues of `size`.
    fn new(host: Box<dyn Host>, without: u64, size: u16) -> Rig {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let dma = Plain::new(memory);
        let device = device(&dma, host.pairs(), host);
        let threads = Threads::start(&[Arc::clone(&device)], 1).unwrap();
        let driver = Driver::new(Arc::clone(&device));
        let mut rig = Rig { dma, device, driver, threads, posted: Vec::new(), place: 0 };
        rig.bring_up(without, size);
        rig
    }

    fn usual() -> (Rig, Fake) {
        let fake = Fake::new(1);
        (Rig::new(Box::new(fake.host()), 0, 16), fake)
    }

    fn bring_up(&mut self, without: u64, size: u16) {
        let features = self.driver.offered() & !without;
        assert!(self.driver.negotiate(features));
        let count = self.device.kicks().len();
        let zeroes = vec![0; (BUFFERS - RINGS) as usize];
        self.dma.view().write_slice(&zeroes, GuestAddress(RINGS)).unwrap();
        for index in 0..count as u64 {
            self.driver.add_queue(Rings::at(RINGS + 0x1000 * index, size));
        }
        self.driver.go();
        self.posted = vec![Vec::new(); count];
    }

    /// Memory that no other buffer of late is at.
    fn place(&mut self) -> u64 {
        let places = (RAM as u64 - BUFFERS) / PLACE;
        self.place = (self.place + 1) % places;
        BUFFERS + self.place * PLACE
    }

    /// Puts buffers of `len` to the receive queue of `pair`, and does not kick.
    fn post(&mut self, pair: u16, count: usize, len: u32) {
        for _ in 0..count {
            let at = self.place();
            let queue = 2 * pair;
            let buffers = [Buffer::writable(at, len)];
            let head = self.driver.add(&self.dma.view(), queue, &buffers).unwrap();
            self.posted[usize::from(queue)].push((head, at, len));
        }
    }

    fn post_and_kick(&mut self, pair: u16, count: usize, len: u32) {
        self.post(pair, count, len);
        self.driver.kick(2 * pair);
    }

    /// The bytes of the next buffer that was used for `pair`.
    fn buffer(&mut self, pair: u16) -> Option<Vec<u8>> {
        let queue = 2 * pair;
        let (head, written) = self.driver.poll(&self.dma.view(), queue)?;
        let posted = &mut self.posted[usize::from(queue)];
        let (_, at, len) = posted.remove(posted.iter().position(|&(h, ..)| h == head).unwrap());
        assert!(written <= len);
        Some(self.memory(at, written as usize))
    }

    /// The next frame that `pair` received, its header first, and in how many buffers.
    fn received(&mut self, pair: u16) -> (Vec<u8>, u16) {
        let mut frame = self.wait(|rig| rig.buffer(pair));
        let count = u16::from_le_bytes([frame[10], frame[11]]);
        for _ in 1..count {
            // At once: a driver does not wait for the rest of a frame.
            frame.extend(self.buffer(pair).expect("a frame's buffers come together"));
        }
        (frame, count)
    }

    /// Puts a frame, cut up as `cuts` says, to the transmit queue of `pair`, and does not kick.
    fn send(&mut self, pair: u16, frame: &[u8], cuts: &[usize]) {
        let mut at = self.place();
        let mut left = frame;
        let mut buffers = Vec::new();
        for &cut in cuts.iter().chain([&usize::MAX]) {
            let (now, rest) = left.split_at(cut.min(left.len()));
            self.dma.view().write_slice(now, GuestAddress(at)).unwrap();
            buffers.push(Buffer::readable(at, now.len() as u32));
            at += now.len() as u64 + 16;
            left = rest;
        }
        self.driver.add(&self.dma.view(), 2 * pair + 1, &buffers).unwrap();
    }

    /// Waits until the next frame was sent.
    fn sent(&mut self, pair: u16) {
        let (_, written) = self.wait(|rig| rig.driver.poll(&rig.dma.view(), 2 * pair + 1));
        assert_eq!(written, 0);
    }

    /// Asks by the control queue, which is the last: the answer.
    fn ask(&mut self, queue: u16, command: &[u8]) -> u8 {
        let at = self.place();
        let view = self.dma.view();
        view.write_slice(command, GuestAddress(at)).unwrap();
        view.write_obj(0xff_u8, GuestAddress(at + 0x1000)).unwrap();
        let buffers =
            [Buffer::readable(at, command.len() as u32), Buffer::writable(at + 0x1000, 1)];
        self.driver.add(&view, queue, &buffers).unwrap();
        self.driver.kick(queue);
        let (_, written) = self.wait(|rig| rig.driver.poll(&rig.dma.view(), queue));
        assert_eq!(written, 1);
        self.dma.view().read_obj(GuestAddress(at + 0x1000)).unwrap()
    }

    fn wait<T>(&mut self, mut what: impl FnMut(&mut Rig) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(it) = what(self) {
                return it;
            }
            let report = self.device.report();
            assert!(begin.elapsed() < Duration::from_secs(20), "nothing came: {report:?}");
            std::thread::yield_now();
        }
    }

    fn count(&self, name: &str) -> u64 {
        let counts = self.device.report().counts;
        counts.iter().find(|&&(this, _)| this == name).unwrap().1
    }

    /// Waits until the device counts so many.
    fn wait_for(&mut self, name: &str, count: u64) {
        self.wait(|rig| (rig.count(name) >= count).then_some(()));
    }

    /// Waits until the device says that it needs a reset, and why.
    fn breaks(&mut self) -> String {
        self.wait(|rig| (rig.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0).then_some(()));
        self.device.report().broken.unwrap()
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma.view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

/// Time in which a device that is going to do something has done it.
fn a_moment() {
    std::thread::sleep(Duration::from_millis(50));
}

/// A header, and a frame of `len` bytes that is like no other but with the same `tag`.
fn frame(tag: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    bytes.extend((0..len).map(|at| (at / 251 + at) as u8 ^ tag));
    bytes
}
