//! A device that pins by itself: with as little around it as there can be, so that nearly all it does is to pin.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

use guest_mm::Guest;
use guest_mm::addr::GpaRange;
use guest_mm::pin::{PinBatch, PinError};
use guest_mm::prot::Access;
use guest_mm::protocol::Protocol;
use vm_memory::{VolatileMemory, VolatileSlice};

use super::heckler::Attendance;
use super::place::{BLOCK, PAGE};
use super::slots::{Log, Slots};
use crate::race::dice::Dice;

/// Ranges of a batch.
const BATCH: u64 = 8;
/// A pin in so many is held for a while, so that collapses meet some that wait.
const HELD: u64 = 1024;
const HOLD: Duration = Duration::from_micros(100);

/// One device.
#[derive(Debug)]
pub(super) struct Device<'a, P: Protocol> {
    guest: &'a Guest<P>,
    slots: Slots<'a>,
    dice: Dice,
}

/// Pages one after the other, in one block, none of them loose.
#[derive(Clone, Copy)]
struct Pages {
    first: u64,
    count: u64,
}

impl<'a, P: Protocol> Device<'a, P> {
    pub(super) fn new(guest: &'a Guest<P>, slots: Slots<'a>, dice: Dice) -> Device<'a, P> {
        Device { guest, slots, dice }
    }

    /// Reads and writes until the storm is over.
    pub(super) fn work(mut self, attendance: &Attendance<'_>) -> Result<Log, PinError> {
        let mut batch = self.guest.pin_batch();
        while !self.slots.is_clear() {
            // Mostly single pages: the gap that a protocol has to close is at the start of a pin.
            match self.dice.pick(0..256) {
                0..224 => self.one(1..2, attendance)?,
                224..250 => self.one(2..9, attendance)?,
                250..255 => self.several(&mut batch)?,
                _ => self.one(64..BLOCK, attendance)?,
            }
        }
        drop(batch);
        Ok(self.slots.into_log(None))
    }

    /// Pins a range of a length in `lengths`.
    fn one(
        &mut self,
        lengths: std::ops::Range<u64>,
        attendance: &Attendance<'_>,
    ) -> Result<(), PinError> {
        let (pages, access) = (self.pages(lengths), self.access());
        attendance.aim(pages.first / BLOCK);
        let pinned = self.guest.pin(self.range(pages), access)?;
        attendance.hit();
        self.transfer(pages, access, pinned.slices());
        self.hold();
        Ok(())
    }

    /// Pins several ranges at once.
    fn several(&mut self, batch: &mut PinBatch<'a, P>) -> Result<(), PinError> {
        let ranges: Vec<(Pages, Access)> =
            (0..BATCH).map(|_| (self.pages(1..9), self.access())).collect();
        batch.pin(ranges.iter().map(|&(pages, access)| (self.range(pages), access)))?;
        for (index, &(pages, access)) in ranges.iter().enumerate() {
            self.transfer(pages, access, batch.slices(index));
        }
        self.hold();
        batch.unpin();
        Ok(())
    }

    /// What happens between a pin and its release.
    fn transfer<'s>(
        &mut self,
        pages: Pages,
        access: Access,
        slices: impl Iterator<Item = VolatileSlice<'s>>,
    ) {
        self.slots.traffic.pins += 1;
        let mut page = pages.first;
        for slice in slices {
            for at in (0..slice.len()).step_by(PAGE as usize) {
                let slot = slice
                    .get_atomic_ref::<AtomicU64>(at + self.slots.offset() as usize)
                    .expect("a pinned page holds its slots");
                self.slots.look(page, slot.load(Relaxed));
                if access == Access::Write {
                    slot.store(self.slots.write(page), Relaxed);
                }
                page += 1;
            }
        }
        assert_eq!(page, pages.first + pages.count, "a pin has other pages than were asked for");
    }

    fn pages(&mut self, lengths: std::ops::Range<u64>) -> Pages {
        let block = self.dice.pick(0..self.slots.place().nr_blocks());
        let count = self.dice.pick(lengths);
        let first = self.dice.pick(0..BLOCK - count);
        Pages { first: block * BLOCK + first, count }
    }

    fn range(&self, pages: Pages) -> GpaRange {
        GpaRange::new(self.slots.place().page(pages.first), pages.count * PAGE)
            .expect("the storm's memory is far below the tables' end")
    }

    fn access(&mut self) -> Access {
        if self.dice.one_in(4) { Access::Read } else { Access::Write }
    }

    fn hold(&mut self) {
        if self.dice.one_in(HELD) {
            sleep(HOLD);
        }
    }
}
