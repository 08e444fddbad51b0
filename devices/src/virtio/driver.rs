//! A driver of virtio devices in this process: what a guest's kernel does, without a guest.
//!
//! It works a device through its registers and rings and nothing else, so tests, fuzzing and benchmarks see what a guest
//! would. It is as naive as a driver may be, and does what it is told: a test that wants a broken ring writes one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::bus::BusDevice;
use crate::dma::Dma;

use super::device::Device;
use super::mmio::Mmio;

/// A buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// Memory that the device reads.
    pub fn readable(addr: u64, len: u32) -> Buffer {
        Buffer { addr, len, writable: false }
    }

    /// Memory that the device writes.
    pub fn writable(addr: u64, len: u32) -> Buffer {
        Buffer { addr, len, writable: true }
    }
}

/// Where a queue's rings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Descriptors, of 16 bytes each.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// Descriptors.
    pub size: u16,
}

impl Rings {
    /// Rings of `size` descriptors one behind the other from `base` on, which is a multiple of 16.
    pub fn at(base: u64, size: u16) -> Rings {
        let descriptors = base;
        let available = descriptors + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Rings { descriptors, available, used, size }
    }

    /// The first address behind them.
    pub fn end(&self) -> u64 {
        self.used + 6 + 8 * u64::from(self.size)
    }
}

/// A queue of this driver.
#[derive(Debug)]
struct Queue {
    rings: Rings,
    free: Vec<u16>,
    /// Descriptors of the chain that begins at each.
    chains: Vec<Vec<u16>>,
    next_available: u16,
    next_used: u16,
}

/// A driver of one device.
#[derive(Debug)]
pub struct Driver<D: Dma> {
    device: Arc<Device<D>>,
    mmio: Mmio<D>,
    queues: Vec<Queue>,
}

impl<D: Dma> Driver<D> {
    /// A driver of `device`, which is attached to a thread.
    pub fn new(device: Arc<Device<D>>) -> Driver<D> {
        Driver { mmio: Mmio::new(Arc::clone(&device)), device, queues: Vec::new() }
    }

    /// Reads the register at `offset`.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.mmio.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes it.
    pub fn write(&mut self, offset: u64, value: u32) {
        let _ = self.mmio.write(offset, &value.to_le_bytes());
    }

    /// Reads the configuration space.
    pub fn config(&mut self, offset: u64, into: &mut [u8]) {
        self.mmio.read(0x100 + offset, into);
    }

    /// The register `Status`.
    pub fn status(&mut self) -> u32 {
        self.read(0x70)
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        let mut features = 0;
        for half in 0..2 {
            self.write(0x14, half);
            features |= u64::from(self.read(0x10)) << (32 * half);
        }
        features
    }

    /// Resets the device and goes as far as agreeing on `features`; whether the device agreed.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(0x70, 0);
        self.queues.clear();
        self.write(0x70, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.write(0x70, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
        for half in 0..2 {
            self.write(0x24, half);
            self.write(0x20, (features >> (32 * half)) as u32);
        }
        let status = self.status();
        self.write(0x70, status | VIRTIO_CONFIG_S_FEATURES_OK);
        self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    /// Sets up the next queue, its rings, which are zeroes, at `rings`.
    pub fn add_queue(&mut self, rings: Rings) {
        let index = self.queues.len() as u32;
        self.write(0x30, index);
        self.write(0x38, rings.size.into());
        let places = [(0x80, rings.descriptors), (0x90, rings.available), (0xa0, rings.used)];
        for (register, address) in places {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
        self.queues.push(Queue {
            rings,
            free: (0..rings.size).rev().collect(),
            chains: vec![Vec::new(); rings.size.into()],
            next_available: 0,
            next_used: 0,
        });
    }

    /// The device may begin.
    pub fn go(&mut self) {
        let status = self.status();
        self.write(0x70, status | VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// All of that with every feature, queues of `size` from `base` on; where memory is free behind them.
    ///
    /// # Panics
    /// If the device does not agree.
    pub fn bring_up(&mut self, base: u64, size: u16) -> u64 {
        let features = self.offered();
        assert!(self.negotiate(features), "a device agrees with its own features");
        let count = self.device.kicks().len();
        let mut end = base;
        for _ in 0..count {
            let rings = Rings::at(end.next_multiple_of(4096), size);
            self.add_queue(rings);
            end = rings.end();
        }
        self.go();
        end.next_multiple_of(4096)
    }

    /// Where queue `queue` has its rings.
    pub fn rings(&self, queue: u16) -> Rings {
        self.queues[usize::from(queue)].rings
    }

    /// Puts a request of `buffers` to `queue`, and does not kick; the index of its first descriptor, or nothing if there
    /// are too few.
    pub fn add<M: GuestMemory>(
        &mut self,
        memory: &M,
        queue: u16,
        buffers: &[Buffer],
    ) -> Option<u16> {
        let queue = &mut self.queues[usize::from(queue)];
        if queue.free.len() < buffers.len() {
            return None;
        }
        let mut chain = queue.free.split_off(queue.free.len() - buffers.len());
        chain.reverse();
        for (at, buffer) in buffers.iter().enumerate() {
            let next = chain.get(at + 1);
            let mut flags = if buffer.writable { VRING_DESC_F_WRITE } else { 0 };
            flags |= if next.is_some() { VRING_DESC_F_NEXT } else { 0 };
            let next = next.copied().unwrap_or(0);
            write_descriptor(memory, queue.rings, chain[at], *buffer, flags as u16, next);
        }
        let head = chain[0];
        queue.chains[usize::from(head)] = chain;
        let place = u64::from(queue.next_available % queue.rings.size);
        put(memory, queue.rings.available + 4 + 2 * place, head);
        queue.next_available = queue.next_available.wrapping_add(1);
        let index = GuestAddress(queue.rings.available + 2);
        let published = memory.store(queue.next_available.to_le(), index, Ordering::Release);
        published.expect("a driver's rings are in its memory");
        Some(head)
    }

    /// Tells the device that something is in `queue`.
    pub fn kick(&mut self, queue: u16) {
        self.write(super::mmio::QUEUE_NOTIFY, queue.into());
    }

    /// The next request of `queue` that is done: the index of its first descriptor, and how many bytes were written.
    pub fn poll<M: GuestMemory>(&mut self, memory: &M, queue: u16) -> Option<(u16, u32)> {
        let queue = &mut self.queues[usize::from(queue)];
        let index = GuestAddress(queue.rings.used + 2);
        let used: u16 = memory.load(index, Ordering::Acquire).expect("as above");
        if u16::from_le(used) == queue.next_used {
            return None;
        }
        let place = u64::from(queue.next_used % queue.rings.size);
        let element = queue.rings.used + 4 + 8 * place;
        let read =
            |at| memory.read_obj::<u32>(GuestAddress(at)).map(u32::from_le).expect("as above");
        let (head, written) = (read(element) as u16, read(element + 4));
        queue.next_used = queue.next_used.wrapping_add(1);
        if let Some(chain) = queue.chains.get_mut(usize::from(head)) {
            queue.free.append(chain);
        }
        Some((head, written))
    }
}

/// Writes descriptor `index`.
pub fn write_descriptor<M: GuestMemory>(
    memory: &M,
    rings: Rings,
    index: u16,
    buffer: Buffer,
    flags: u16,
    next: u16,
) {
    let at = rings.descriptors + 16 * u64::from(index);
    put(memory, at, buffer.addr);
    put(memory, at + 8, buffer.len);
    put(memory, at + 12, flags);
    put(memory, at + 14, next);
}

/// Writes `value`, which is a plain number.
fn put<M: GuestMemory, T: vm_memory::ByteValued>(memory: &M, at: u64, value: T) {
    memory.write_obj(value, GuestAddress(at)).expect("a driver's rings are in its memory");
}
