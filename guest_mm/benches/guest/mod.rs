//! A guest to measure.

use guest_mm::addr::{Gfn, GfnRange, PageSize};
use guest_mm::pool::BackingChoice;
use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm};

/// Frames of a block.
pub(crate) const BLOCK: u64 = PageSize::Size2M.frames();

/// A guest of `blocks` blocks of RAM, all of it there in leaves of `pages`. Keep the service as long.
pub(crate) fn guest(blocks: u64, pages: PageSize) -> (Guest, GuestMm) {
    let ram = frames(0, blocks * BLOCK);
    // On huge folios where they are to be had, whatever the faults' size.
    let service = GuestMm::new(BackingChoice::Auto, ram.bytes(), PageSize::Size2M)
        .expect("a pool for the guest");
    let config = GuestConfig {
        ram: vec![ram],
        over: Vec::new(),
        on_missing: None,
        policy: FaultPolicy { pages },
        fault_threads: 1,
        on_stop: Box::new(|error| panic!("{error}")),
    };
    let guest = service.add_guest(config).expect("a guest");
    guest.populate(ram).expect("the pool holds all of RAM");
    (guest, service)
}

/// `frames` frames from `first` on.
pub(crate) fn frames(first: u64, frames: u64) -> GfnRange {
    GfnRange::new(Gfn::new(first), frames).expect("a range inside of the tables")
}
