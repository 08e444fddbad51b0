//! A device: it owns one slot of every page, and knows what it wrote to each.

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
use super::place::{BLOCK, PAGE, Place};
use super::report::{Loss, Traffic};
use super::sky::Sky;
use crate::race::dice::Dice;

/// Ranges of a batch.
const BATCH: u64 = 8;
/// A pin in so many is held for a while, so that collapses meet some that wait.
const HELD: u64 = 1024;
const HOLD: Duration = Duration::from_micros(100);

/// One device.
#[derive(Debug)]
pub(super) struct Device<'a, P: Protocol> {
    number: u64,
    guest: &'a Guest<P>,
    place: Place,
    sky: &'a Sky,
    dice: Dice,
    /// The number written last. No two writes of a device are alike, so a page in another's place shows.
    next: u64,
    /// What was written last to each page.
    last: Vec<u64>,
    traffic: Traffic,
}

/// What a device knows when it has stopped.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) last: Vec<u64>,
    pub(super) traffic: Traffic,
}

/// Pages one after the other, in one block, none of them loose.
#[derive(Clone, Copy)]
struct Pages {
    first: u64,
    count: u64,
}

impl<'a, P: Protocol> Device<'a, P> {
    pub(super) fn new(
        number: u64,
        guest: &'a Guest<P>,
        place: Place,
        sky: &'a Sky,
        dice: Dice,
    ) -> Device<'a, P> {
        let (last, traffic) = (vec![0; place.nr_pages() as usize], Traffic::default());
        Device { number, guest, place, sky, dice, next: 0, last, traffic }
    }

    /// Reads and writes until the storm is over.
    pub(super) fn work(mut self, attendance: &Attendance<'_>) -> Result<Log, PinError> {
        let mut batch = self.guest.pin_batch();
        while !self.sky.is_clear() {
            // Mostly single pages: the gap that a protocol has to close is at the start of a pin.
            match self.dice.pick(0..256) {
                0..224 => self.one(1..2, attendance)?,
                224..250 => self.one(2..9, attendance)?,
                250..255 => self.several(&mut batch)?,
                _ => self.one(64..BLOCK, attendance)?,
            }
        }
        drop(batch);
        Ok(Log { last: self.last, traffic: self.traffic })
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
        self.traffic.pins += 1;
        let mut page = pages.first;
        for slice in slices {
            for at in (0..slice.len()).step_by(PAGE as usize) {
                let slot = slice
                    .get_atomic_ref::<AtomicU64>(at + 8 * self.number as usize)
                    .expect("a pinned page holds its slots");
                self.look(page, slot.load(Relaxed));
                if access == Access::Write {
                    self.next += 1;
                    slot.store(self.next, Relaxed);
                    self.last[page as usize] = self.next;
                    self.traffic.writes += 1;
                }
                page += 1;
            }
        }
        assert_eq!(page, pages.first + pages.count, "a pin has other pages than were asked for");
    }

    /// Checks that the number in the slot of `page` is the one that this device wrote there last.
    fn look(&mut self, page: u64, found: u64) {
        self.traffic.reads += 1;
        let expected = std::mem::replace(&mut self.last[page as usize], found);
        if found != expected {
            self.traffic.lost += 1;
            let gpa = self.place.page(page).as_u64() + 8 * self.number;
            let (device, seconds) = (self.number, self.sky.seconds());
            self.traffic.first_loss.get_or_insert(Loss { gpa, device, expected, found, seconds });
            self.sky.thunder();
        }
    }

    fn pages(&mut self, lengths: std::ops::Range<u64>) -> Pages {
        let block = self.dice.pick(0..self.place.nr_blocks());
        let count = self.dice.pick(lengths);
        let first = self.dice.pick(0..BLOCK - count);
        Pages { first: block * BLOCK + first, count }
    }

    fn range(&self, pages: Pages) -> GpaRange {
        GpaRange::new(self.place.page(pages.first), pages.count * PAGE)
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
