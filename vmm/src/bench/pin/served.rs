//! What is measured: pins of a guest's memory.

use std::hint::black_box;

use guest_mm::addr::{Gfn, GfnRange, Gpa, GpaRange, PageSize};
use guest_mm::collapse::CollapsePolicy;
use guest_mm::pin::PinBatch;
use guest_mm::pool::BackingChoice;
use guest_mm::prot::Access;
use guest_mm::protocol::Sound;
use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm};

use crate::bench::{BenchError, failed};

use super::pages::{BLOCK, PAGE, PAGES};

/// A guest of [`PAGES`] pages, all of them there. It goes before its service.
#[derive(Debug)]
pub(super) struct Served {
    guest: Guest,
    _service: GuestMm,
}

impl Served {
    /// RAM in leaves of `size`.
    pub(super) fn new(size: PageSize) -> Result<Served, BenchError> {
        let bytes = PAGES * PAGE;
        let ram = GfnRange::new(Gfn::new(0), PAGES).map_err(failed)?;
        let service = GuestMm::new(BackingChoice::Auto, bytes, size).map_err(failed)?;
        let guest = service
            .add_guest(GuestConfig {
                ram: vec![ram],
                over: Vec::new(),
                on_missing: None,
                policy: FaultPolicy { pages: size },
                fault_threads: 1,
                on_stop: Box::new(|error| eprintln!("error: {error}")),
            })
            .map_err(failed)?;
        guest.populate(ram).map_err(failed)?;
        Ok(Served { guest, _service: service })
    }

    /// Pins a page for a device that writes, and unpins it.
    #[inline(never)]
    pub(super) fn pin_unpin(&self, page: u64) {
        let pinned = self.guest.pin(range(page, 1), Access::Write);
        // By reference, as a device uses it: by value it would be copied.
        black_box(&pinned.expect("every page of the guest is there"));
    }

    /// Pins a whole block, and unpins it.
    #[inline(never)]
    pub(super) fn pin_unpin_block(&self, block: u64) {
        let pinned = self.guest.pin(range(block * BLOCK, BLOCK), Access::Write);
        black_box(&pinned.expect("every block of the guest is there"));
    }

    /// A batch with room for `pages`.
    pub(super) fn batch(&self, pages: usize) -> PinBatch<'_, Sound> {
        let mut batch = self.guest.pin_batch();
        batch.reserve(pages, pages);
        batch
    }

    /// Pins pages with one call, and unpins them.
    #[inline(never)]
    pub(super) fn pin_unpin_batch(&self, pages: &[u64], batch: &mut PinBatch<'_, Sound>) {
        let ranges = pages.iter().map(|&page| (range(page, 1), Access::Write));
        batch.pin(ranges).expect("every page of the guest is there");
        black_box(&mut *batch).unpin();
    }

    /// Makes a block one leaf, unless a page of it is pinned just now, and small leaves again; whether it
    /// was one.
    pub(super) fn collapse_and_split(&self, block: u64) -> Result<bool, BenchError> {
        let range = GfnRange::new(Gfn::new(block * BLOCK), BLOCK).map_err(failed)?;
        let report = self.guest.collapse(range, CollapsePolicy::default()).map_err(failed)?;
        self.guest.split(range, PageSize::Size4K).map_err(failed)?;
        Ok(report.promoted + report.copied > 0)
    }
}

fn range(page: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(page * PAGE), pages * PAGE)
        .expect("pages of RAM are inside of the tables")
}
