//! Requests under way: a slot for each, with its pins.

use std::time::Instant;

use crate::dma::{Dma, Hold, Iovecs};
use crate::virtio::model::InFlight;

use super::host::Operation;
use super::wire::Range;

/// A request, and what it holds of the guest.
#[derive(Debug)]
pub(super) struct Slot<H> {
    pub(super) number: u32,
    pub(super) queue: u16,
    pub(super) head: u16,
    /// Where its status goes.
    pub(super) status: u64,
    pub(super) hold: H,
    pub(super) buffers: Iovecs,
    /// Bytes of the answer beside the status.
    pub(super) moved: u32,
    pub(super) operation: Operation,
    /// In the file.
    pub(super) offset: u64,
    /// What is still to be discarded, or zeroed.
    pub(super) ranges: Vec<Range>,
    /// Its driver has gone: nobody is told of its end.
    pub(super) orphan: bool,
    began: Instant,
}

/// All slots of a disk. They are made once, with their room.
#[derive(Debug)]
pub(super) struct Slots<H> {
    /// By number; empty while in use by the model or free.
    under_way: Vec<Option<Slot<H>>>,
    free: Vec<Slot<H>>,
    /// Queues with answers that their driver was not told of, a bit for each.
    pub(super) answered: u32,
}

impl<H: Hold> Slots<H> {
    pub(super) fn new<D: Dma<Hold = H>>(dma: &D, count: u32) -> Slots<H> {
        let began = Instant::now();
        let slot = |number| Slot {
            number,
            queue: 0,
            head: 0,
            status: 0,
            hold: dma.hold(),
            buffers: Iovecs::default(),
            moved: 0,
            operation: Operation::Sync,
            offset: 0,
            ranges: Vec::new(),
            orphan: false,
            began,
        };
        Slots {
            under_way: (0..count).map(|_| None).collect(),
            free: (0..count).rev().map(slot).collect(),
            answered: 0,
        }
    }

    /// Whether there is none for another request.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// A slot for the request at `head` of `queue`.
    ///
    /// # Panics
    /// If it is full.
    pub(super) fn get(&mut self, queue: u16, head: u16, status: u64, began: Instant) -> Slot<H> {
        let slot = self.free.pop().expect("there is a slot for every request that is taken");
        Slot { queue, head, status, began, moved: 0, orphan: false, ..slot }
    }

    /// Its operation is under way.
    pub(super) fn put(&mut self, slot: Slot<H>) {
        let place = slot.number as usize;
        self.under_way[place] = Some(slot);
    }

    /// Its operation has ended.
    pub(super) fn take(&mut self, number: u32) -> Option<Slot<H>> {
        self.under_way.get_mut(number as usize)?.take()
    }

    /// Its request has ended.
    pub(super) fn free(&mut self, mut slot: Slot<H>) {
        slot.hold.release();
        slot.buffers.clear();
        slot.ranges.clear();
        self.free.push(slot);
    }

    /// Nobody waits for what is under way.
    pub(super) fn orphan(&mut self) {
        self.under_way.iter_mut().flatten().for_each(|slot| slot.orphan = true);
        self.answered = 0;
    }

    pub(super) fn in_flight(&self) -> Option<InFlight> {
        if self.free.len() == self.under_way.len() {
            return None;
        }
        let requests = self.under_way.iter().flatten().count();
        let oldest = self.under_way.iter().flatten().min_by_key(|slot| slot.began);
        let oldest = oldest.map_or_else(String::new, |slot| {
            let Slot { operation, offset, began, .. } = slot;
            format!("{operation:?} at byte {offset} of its file, begun {:?} ago", began.elapsed())
        });
        Some(InFlight { requests, oldest })
    }
}
