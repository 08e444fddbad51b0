//! The slots of one device, one in every page: what it wrote last to each, and whether that is still there.

use super::place::{Place, SLOT};
use super::report::{Loss, Traffic};
use super::sky::Sky;

/// One device's.
#[derive(Debug)]
pub(super) struct Slots<'a> {
    number: u64,
    place: Place,
    sky: &'a Sky,
    /// The number written last. No two writes of a device are alike, so a page in another's place shows.
    newest: u64,
    /// What was written last to each page.
    last: Vec<u64>,
    pub(super) traffic: Traffic,
}

/// What a device knows when it has stopped.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) last: Vec<u64>,
    pub(super) traffic: Traffic,
    /// Why it stopped before the storm did.
    pub(super) stranded: Option<String>,
}

impl<'a> Slots<'a> {
    /// The slots of device `number`.
    pub(super) fn new(number: u64, place: Place, sky: &'a Sky) -> Slots<'a> {
        let (last, traffic) = (vec![0; place.nr_pages() as usize], Traffic::default());
        Slots { number, place, sky, newest: 0, last, traffic }
    }

    /// Whose they are.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Where they are.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Whether the storm is over.
    pub(super) fn is_clear(&self) -> bool {
        self.sky.is_clear()
    }

    /// Where a page has its slot.
    pub(super) fn offset(&self) -> u64 {
        SLOT * self.number
    }

    /// The slot of `page`.
    pub(super) fn gpa(&self, page: u64) -> u64 {
        self.place.page(page).as_u64() + self.offset()
    }

    /// Checks that the number in the slot of `page` is the one that this device wrote there last.
    pub(super) fn look(&mut self, page: u64, found: u64) {
        self.traffic.reads += 1;
        let expected = std::mem::replace(&mut self.last[page as usize], found);
        if found != expected {
            self.traffic.lost += 1;
            let (gpa, device, seconds) = (self.gpa(page), self.number, self.sky.seconds());
            self.traffic.first_loss.get_or_insert(Loss { gpa, device, expected, found, seconds });
            self.sky.thunder();
        }
    }

    /// The number that goes to the slot of `page` next.
    pub(super) fn write(&mut self, page: u64) -> u64 {
        self.newest += 1;
        self.last[page as usize] = self.newest;
        self.traffic.writes += 1;
        self.newest
    }

    /// The device has stopped, because the storm has or for the reason given.
    pub(super) fn into_log(mut self, stranded: Option<String>) -> Log {
        if stranded.is_some() {
            self.traffic.stranded += 1;
            self.sky.thunder();
        }
        Log { last: self.last, traffic: self.traffic, stranded }
    }
}
