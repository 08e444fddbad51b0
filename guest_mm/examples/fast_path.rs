//! A pin of one page in a function of its own, so that its instructions can be looked at: see `docs/fast-path.md`.

use std::hint::black_box;

use guest_mm::addr::{Gfn, GfnRange, Gpa, GpaRange, PageSize};
use guest_mm::pool::BackingChoice;
use guest_mm::prot::Access;
use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm};

const PAGES: u64 = 1024;
const PAGE: u64 = PageSize::Size4K.bytes();

#[inline(never)]
fn pin_page(guest: &Guest, gpa: u64) {
    let page = GpaRange::new(Gpa::new(gpa), PAGE).expect("the page lies in RAM");
    drop(guest.pin(page, Access::Write).expect("RAM can be pinned"));
}

fn main() {
    let mm = GuestMm::new(BackingChoice::Auto, PAGES * PAGE, PageSize::Size4K).expect("memory");
    let ram = GfnRange::new(Gfn::new(0), PAGES).expect("RAM");
    let config = GuestConfig {
        ram: vec![ram],
        over: Vec::new(),
        on_missing: None,
        policy: FaultPolicy { pages: PageSize::Size4K },
        fault_threads: 1,
        on_stop: Box::new(|error| eprintln!("{error}")),
    };
    let guest = mm.add_guest(config).expect("a userfaultfd");
    guest.populate(ram).expect("a frame for each page");
    // Twice: the first pin of a page for writing also notes that the page is dirty.
    (0..2 * PAGES).for_each(|i| pin_page(&guest, black_box(i % PAGES * PAGE)));
}
