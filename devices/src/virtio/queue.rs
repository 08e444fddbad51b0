//! A split virtqueue as device models see it: `virtio-queue`'s, with what that lets pass made an error.
//!
//! `virtio-queue` ends a chain that it cannot follow as if it were complete. A driver that makes such a chain is broken or
//! hostile, and a device that carried on would do something else than what was asked. So each chain is read whole before
//! any of it is used, and one that is cut off, loops, is empty, or has buffers in the wrong order breaks the device.

mod taking;

use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue as Ring, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::dma::{DmaError, Segment};

use super::gate::Gate;

pub use taking::Taken;

/// Why a device stops until its driver resets it (`DEVICE_NEEDS_RESET`, virtio 1.2, 2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The rings cannot be used.
    #[error("queue {queue}: {reason}")]
    Ring {
        /// The queue.
        queue: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// A chain is none.
    #[error("queue {queue}: the descriptor chain at {head} {reason}")]
    Chain {
        /// The queue.
        queue: u16,
        /// Index of its first descriptor.
        head: u16,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A request makes no sense.
    #[error("queue {queue}: the request at {head} {reason}")]
    Request {
        /// The queue.
        queue: u16,
        /// Index of its first descriptor.
        head: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// Memory that a driver named cannot be used.
    #[error("queue {queue}: {source}")]
    Memory {
        /// The queue.
        queue: u16,
        /// Where and why.
        source: DmaError,
    },
    /// The host's side has gone.
    #[error("{0}")]
    Host(String),
}

/// A chain of descriptors. Meant to be used again, so that a chain allocates nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor.
    pub head: u16,
    /// What the device reads, in order.
    pub readable: Vec<Segment>,
    /// What the device writes, in order.
    pub writable: Vec<Segment>,
}

impl Chain {
    /// All of its memory.
    fn segments(&self) -> impl Iterator<Item = Segment> {
        self.readable.iter().chain(&self.writable).copied()
    }

    /// Bytes that the device reads.
    pub fn readable_bytes(&self) -> u64 {
        self.readable.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Bytes that the device writes.
    pub fn writable_bytes(&self) -> u64 {
        self.writable.iter().map(|segment| u64::from(segment.len)).sum()
    }
}

/// A queue of a device.
#[derive(Debug)]
pub struct Queue {
    index: u16,
    ring: Ring,
    /// Chains used since the driver was last asked whether it wants to hear of them. A reset leaves it: too many means an
    /// interrupt too many.
    used: u16,
    /// None if all memory is here.
    gate: Option<Gate>,
}

impl Queue {
    /// Queue `index` of a device, of up to `max_size` descriptors.
    ///
    /// # Panics
    /// If `max_size` is no power of two up to 32768: it is written in a model.
    pub fn new(index: u16, max_size: u16) -> Queue {
        let ring = Ring::new(max_size).expect("a model's queues have sizes that virtio allows");
        Queue { index, ring, used: 0, gate: None }
    }

    /// The same, whose memory may be elsewhere.
    pub(super) fn with_gate(self, gate: Option<Gate>) -> Queue {
        Queue { gate, ..self }
    }

    /// Which of its device's.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The registers of the transport work on it.
    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Likewise.
    pub(super) fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Its indices and addresses.
    pub fn state(&self) -> QueueState {
        self.ring.state()
    }

    /// A queue as `state` says.
    pub(super) fn restore(&mut self, state: QueueState) -> Result<(), Broken> {
        self.ring = Ring::try_from(state).map_err(|error| self.broken(&error))?;
        self.gate.iter_mut().for_each(Gate::reset);
        Ok(())
    }

    /// Becomes a queue that no driver has set up.
    pub(super) fn reset(&mut self) {
        self.ring.reset();
        self.gate.iter_mut().for_each(Gate::reset);
    }

    /// The driver has set it up, or gives it up.
    pub(super) fn set_ready(&mut self, ready: bool) {
        self.ring.set_ready(ready);
        self.gate.iter_mut().for_each(Gate::reset);
    }

    /// Whether the driver has set it up.
    pub fn is_ready(&self) -> bool {
        self.ring.ready()
    }

    /// Whether its rings lie in memory that can be used.
    pub(super) fn check<M: GuestMemory>(&self, memory: &M) -> Result<(), Broken> {
        if self.ring.is_valid(memory) {
            return Ok(());
        }
        let reason = format!(
            "its rings (descriptors {:#x}, available {:#x}, used {:#x}, size {}) do not lie in memory that a device may use",
            self.ring.desc_table(),
            self.ring.avail_ring(),
            self.ring.used_ring(),
            self.ring.size()
        );
        Err(Broken::Ring { queue: self.index, reason })
    }

    /// Reads the next chain, if there is one.
    fn read<M: GuestMemory>(&mut self, memory: &M, chain: &mut Chain) -> Result<bool, Broken> {
        chain.readable.clear();
        chain.writable.clear();
        let (queue, size) = (self.index, self.ring.size());
        // The iterator does not tell an empty ring from one that cannot be read. A chain that came since it looked is seen by
        // a second one.
        let mut looks = 0;
        let mut descriptors = loop {
            let mut heads = self.ring.iter(memory).map_err(|error| broken(queue, &error))?;
            if let Some(descriptors) = heads.next() {
                break descriptors;
            }
            if self.brought(memory)? == 0 {
                return Ok(false);
            }
            looks += 1;
            if looks == 2 {
                return Err(self.unreadable());
            }
        };
        chain.head = descriptors.head_index();
        let bad = |reason| Broken::Chain { queue, head: chain.head, reason };
        let mut cut_off = true;
        let mut length = 0;
        for descriptor in &mut descriptors {
            length += 1;
            // 2.7.5.3.1: not in an indirect table either. What a request takes of the host is bounded by this.
            if length > size {
                return Err(bad("is longer than its queue"));
            }
            cut_off = descriptor.has_next();
            let segment = Segment { addr: descriptor.addr().0, len: descriptor.len() };
            if segment.len == 0 {
                return Err(bad("has a descriptor of no length"));
            }
            if segment.addr.checked_add(segment.len.into()).is_none() {
                return Err(bad("has a descriptor that ends behind the last address"));
            }
            if descriptor.is_write_only() {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(bad("has memory to read behind memory to write"));
            }
        }
        if chain.readable.is_empty() && chain.writable.is_empty() {
            return Err(bad("is empty, or its descriptors cannot be read"));
        }
        if cut_off {
            return Err(bad("loops, leaves its table, or cannot be read to its end"));
        }
        Ok(true)
    }

    /// Gives the chain that was taken last back to the ring: it is taken again by the next [`Queue::next`].
    pub fn undo(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Whether no chain is waiting.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn is_empty<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Broken> {
        Ok(self.waiting(memory)? == 0)
    }

    /// How many chains are waiting, as the driver says, up to one whose memory is known not to be here.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn waiting<M: GuestMemory>(&mut self, memory: &M) -> Result<u16, Broken> {
        if !self.has_rings() {
            return Ok(0);
        }
        let end = self.gate.as_ref().and_then(Gate::end);
        let most = end.map_or(u16::MAX, |end| end.wrapping_sub(self.ring.next_avail()));
        Ok(self.brought(memory)?.min(most))
    }

    /// How many chains the driver has brought.
    fn brought<M: GuestMemory>(&self, memory: &M) -> Result<u16, Broken> {
        let index = self.ring.avail_idx(memory, Ordering::Acquire);
        let index = index.map_err(|error| self.broken(&error))?.0;
        Ok(index.wrapping_sub(self.ring.next_avail()))
    }

    /// Tells the driver that the chain at `head` is done, with `written` bytes of it.
    ///
    /// # Errors
    /// The ring cannot be written.
    pub fn add_used<M: GuestMemory>(
        &mut self,
        memory: &M,
        head: u16,
        written: u32,
    ) -> Result<(), Broken> {
        self.used = self.used.wrapping_add(1);
        self.ring.add_used(memory, head, written).map_err(|error| broken(self.index, &error))
    }

    /// Tells the driver that all of `used`, heads and bytes written, are done: whoever sees the first sees the others.
    ///
    /// # Errors
    /// The ring cannot be written, or has fewer entries than `used`.
    pub fn add_used_together<M: GuestMemory>(
        &mut self,
        memory: &M,
        used: &[(u16, u32)],
    ) -> Result<(), Broken> {
        let Some((&(head, written), others)) = used.split_last() else { return Ok(()) };
        let (first, size) = (self.ring.next_used(), self.ring.size());
        if used.len() > size.into() || others.iter().any(|&(head, _)| head >= size) {
            return Err(self.broken(&QueueError::InvalidDescriptorIndex));
        }
        // Elements behind the ring's index are the device's own; the last one moves the index over all of them.
        let mut place = first;
        for &(head, written) in others {
            let element = u64::from(head) | u64::from(written) << 32;
            let offset = 4 + 8 * u64::from(place % size);
            let at = GuestAddress(self.ring.used_ring().wrapping_add(offset));
            let put = memory.write_obj(element.to_le(), at);
            put.map_err(|error| self.broken(&QueueError::GuestMemory(error)))?;
            place = place.wrapping_add(1);
        }
        self.ring.set_next_used(place);
        self.used = self.used.wrapping_add(others.len() as u16);
        self.add_used(memory, head, written)
    }

    /// Asks the driver not to kick.
    ///
    /// # Errors
    /// The ring cannot be written.
    pub fn mute<M: GuestMemory>(&mut self, memory: &M) -> Result<(), Broken> {
        if !self.has_rings() {
            return Ok(());
        }
        self.ring.disable_notification(memory).map_err(|error| broken(self.index, &error))
    }

    /// Asks the driver to kick; whether a chain has come meanwhile.
    ///
    /// # Errors
    /// The ring cannot be used.
    pub fn unmute<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Broken> {
        if !self.has_rings() {
            return Ok(false);
        }
        let more = self.ring.enable_notification(memory);
        let more = more.map_err(|error| broken(self.index, &error))?;
        Ok(more && self.waiting(memory)? > 0)
    }

    /// Whether the driver wants to hear of what was used since this was last asked.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn wants_interrupt<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Broken> {
        let queue = self.index;
        let wanted = self.ring.needs_notification(memory);
        let wanted = wanted.map_err(|error| broken(queue, &error))?;
        let used = std::mem::take(&mut self.used);
        if self.ring.event_idx_enabled() {
            // 2.7.10: `used_event` lies behind the available ring. `virtio-queue` knows of single chains only.
            let behind = 4 + 2 * u64::from(self.ring.size());
            let at = GuestAddress(self.ring.avail_ring().wrapping_add(behind));
            let event = memory.load::<u16>(at, Ordering::Relaxed);
            let event = event.map_err(|error| broken(queue, &QueueError::GuestMemory(error)))?;
            let since = self.ring.next_used().wrapping_sub(u16::from_le(event)).wrapping_sub(1);
            return Ok(wanted || since < used);
        }
        // virtio 1.2, 2.7.7.1. `virtio-queue` leaves the flag to its users, behind its full fence.
        let flags = memory.load::<u16>(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed);
        let flags = flags.map_err(|error| broken(self.index, &QueueError::GuestMemory(error)))?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    fn unreadable(&self) -> Broken {
        Broken::Ring { queue: self.index, reason: "its available ring cannot be read".into() }
    }

    fn broken(&self, error: &QueueError) -> Broken {
        broken(self.index, error)
    }
}

fn broken(queue: u16, error: &QueueError) -> Broken {
    let reason = match error {
        QueueError::GuestMemory(memory) => format!("its rings cannot be used: {memory}"),
        other => other.to_string(),
    };
    Broken::Ring { queue, reason }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use vm_memory::guest_memory::GuestMemorySliceIterator;
    use vm_memory::{GuestMemoryMmap, GuestMemoryResult, Permissions};

    use super::super::driver::{Buffer, Rings, write_descriptor};
    use super::*;

    const RINGS: u64 = 0x1000;
    const SIZE: u16 = 16;

    /// Memory where the driver makes a chain available between the first look at the ring's index and the second.
    struct Busy {
        memory: GuestMemoryMmap,
        index: GuestAddress,
        looks: Cell<u32>,
    }

    impl GuestMemory for Busy {
        type PhysicalMemory = GuestMemoryMmap;
        type Bitmap = ();

        fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
            GuestMemory::check_range(&self.memory, addr, count, access)
        }

        fn get_slices<'a>(
            &'a self,
            addr: GuestAddress,
            count: usize,
            access: Permissions,
        ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
            if addr == self.index {
                self.looks.set(self.looks.get() + 1);
                if self.looks.get() == 2 {
                    self.memory.write_obj(1_u16.to_le(), self.index).unwrap();
                }
            }
            GuestMemory::get_slices(&self.memory, addr, count, access)
        }
    }

    /// The device took such a ring for one that cannot be read, and broke.
    #[test]
    fn a_chain_that_comes_while_the_ring_is_looked_at_is_taken() {
        let rings = Rings::at(RINGS, SIZE);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        write_descriptor(&memory, rings, 0, Buffer::readable(0x8000, 64), 0, 0);
        let index = GuestAddress(rings.available + 2);
        let memory = Busy { memory, index, looks: Cell::new(0) };
        let mut queue = Queue::new(0, SIZE);
        let ring = queue.ring_mut();
        ring.set_size(SIZE);
        ring.set_desc_table_address(Some(rings.descriptors as u32), None);
        ring.set_avail_ring_address(Some(rings.available as u32), None);
        ring.set_used_ring_address(Some(rings.used as u32), None);
        ring.set_ready(true);
        let mut chain = Chain::default();
        assert!(queue.next(&memory, &mut chain).unwrap(), "the chain is there now");
        assert_eq!(chain.readable, [Segment { addr: 0x8000, len: 64 }]);
        assert!(!queue.next(&memory, &mut chain).unwrap());
    }
}
