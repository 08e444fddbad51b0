//! Chains that are taken when all of their memory is here.
//!
//! Some of a guest's memory may be elsewhere yet. Before anything is used it is looked at, in the order in which one leads to
//! the other: the rings, the tables of descriptors, what a chain names.

use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::dma::{Segment, Wait};
use crate::virtio::gate::Gate;

use super::{Broken, Chain, Queue};

/// What [`Queue::take`] has found.
#[derive(Debug)]
#[must_use = "a chain that was taken has to be used, put aside or undone"]
pub enum Taken {
    /// No chain is waiting that can be read.
    Nothing,
    /// One whose memory is here.
    Here,
    /// One whose memory is not here yet. The queue is kicked when it is.
    Coming(Wait),
}

impl Queue {
    /// Whether its rings are here. If not, it is empty, and kicked when they are.
    pub fn has_rings(&mut self) -> bool {
        self.gate.take_if(|gate| gate.is_of_no_use());
        let Some(gate) = &mut self.gate else { return true };
        let size = u32::from(self.ring.size());
        let rings = [
            Segment { addr: self.ring.desc_table(), len: 16 * size },
            Segment { addr: self.ring.avail_ring(), len: 6 + 2 * size },
            Segment { addr: self.ring.used_ring(), len: 6 + 8 * size },
        ];
        gate.has_rings(self.ring.next_avail(), rings)
    }

    /// Takes the next chain, if there is one. One whose memory is not here yet is none, and neither are those behind it; the queue
    /// is kicked when it is.
    ///
    /// # Errors
    /// The ring's index jumped, or the chain is none.
    pub fn next<M: GuestMemory>(&mut self, memory: &M, chain: &mut Chain) -> Result<bool, Broken> {
        match self.take(memory, chain)? {
            Taken::Nothing => Ok(false),
            Taken::Here => Ok(true),
            Taken::Coming(wait) => {
                self.undo();
                self.hold(wait);
                Ok(false)
            }
        }
    }

    /// As [`Queue::next`], for a device that may do something else with a chain whose memory is not here.
    ///
    /// # Errors
    /// As for [`Queue::next`].
    pub fn take<M: GuestMemory>(&mut self, memory: &M, chain: &mut Chain) -> Result<Taken, Broken> {
        if !self.next_named(memory, chain)? {
            return Ok(Taken::Nothing);
        }
        Ok(self.fetch(chain).map_or(Taken::Here, Taken::Coming))
    }

    /// Asks for what of the memory of `chain` is not here; the queue is kicked when it is.
    pub fn fetch(&self, chain: &Chain) -> Option<Wait> {
        self.gate.as_ref()?.fetch(chain.segments())
    }

    /// The next chain is waited for.
    fn hold(&mut self, wait: Wait) {
        if let Some(gate) = &mut self.gate {
            gate.hold(self.ring.next_avail(), wait);
        }
    }

    /// Whether all tables of the next chain are here. What is wrong with it is found when it is read.
    fn has_tables<M: GuestMemory>(&mut self, memory: &M) -> bool {
        let Some(gate) = &mut self.gate else { return true };
        let (size, place) = (self.ring.size(), self.ring.next_avail());
        let load = |base: u64, offset: u64| {
            let word =
                memory.load::<u16>(GuestAddress(base.wrapping_add(offset)), Ordering::Relaxed);
            word.map(u16::from_le)
        };
        let available = self.ring.avail_idx(memory, Ordering::Acquire);
        if available.is_ok_and(|index| index.0 == place) {
            return true;
        }
        let Ok(mut index) = load(self.ring.avail_ring(), 4 + 2 * u64::from(place % size)) else {
            return true;
        };
        for _ in 0..size {
            if index >= size {
                return true;
            }
            let descriptor = 16 * u64::from(index);
            let at = GuestAddress(self.ring.desc_table().wrapping_add(descriptor));
            let Ok([addr, rest]) = memory.read_obj::<[u64; 2]>(at) else { return true };
            let (len, flags) = (u64::from_le(rest) as u32, u64::from_le(rest) >> 32);
            if flags & u64::from(VRING_DESC_F_INDIRECT) != 0 {
                let table = Segment { addr: u64::from_le(addr), len };
                let wait = gate.fetch(std::iter::once(table));
                let Some(wait) = wait else { return true };
                gate.hold(place, wait);
                return false;
            }
            if flags & u64::from(VRING_DESC_F_NEXT) == 0 {
                return true;
            }
            index = (flags >> 16) as u16;
        }
        true
    }

    /// As [`Queue::next`], for a device that does not use the memory that a chain names: only what describes it is here.
    ///
    /// # Errors
    /// As for [`Queue::next`].
    pub fn next_named<M: GuestMemory>(
        &mut self,
        memory: &M,
        chain: &mut Chain,
    ) -> Result<bool, Broken> {
        let held = self.gate.as_ref().and_then(Gate::end) == Some(self.ring.next_avail());
        if !self.has_rings() || held || !self.has_tables(memory) {
            return Ok(false);
        }
        self.read(memory, chain)
    }
}
