//! A guest whose pages all have the same bytes.
#![allow(unsafe_code, reason = "touches the window as a guest would")]

use guest_mm::addr::{Gfn, GfnRange, Hva, PageSize};
use guest_mm::dedup::DedupPolicy;
use guest_mm::pool::BackingChoice;
use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm};

use crate::bench::{BenchError, failed};

use super::median_of_each;

pub(super) const PAGE: u64 = 4096;

/// A guest of one range of RAM, all of it there in pages of 4 KiB. It goes before its service.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) guest: Guest,
    pub(super) service: GuestMm,
    pub(super) ram: GfnRange,
    window: Hva,
}

impl Served {
    pub(super) fn new(pages: u64) -> Result<Served, BenchError> {
        let ram = GfnRange::new(Gfn::new(0), pages).map_err(failed)?;
        let bytes = (pages * PAGE).next_multiple_of(PageSize::Size2M.bytes());
        // A block more than the RAM: what is shared stays in its place while its pages get copies.
        let bytes = bytes + PageSize::Size2M.bytes();
        let service = GuestMm::new(BackingChoice::Auto, bytes, PageSize::Size4K).map_err(failed)?;
        let guest = service
            .add_guest(GuestConfig {
                ram: vec![ram],
                over: Vec::new(),
                on_missing: None,
                policy: FaultPolicy { pages: PageSize::Size4K },
                fault_threads: 1,
                on_stop: Box::new(|error| {
                    // The store that met it would wait for ever.
                    eprintln!("error: the benchmark's guest was stopped: {error}");
                    std::process::exit(1);
                }),
            })
            .map_err(failed)?;
        guest.populate(ram).map_err(failed)?;
        let no_window = || BenchError::Guest("it has no window".into());
        let (_, window) = guest.windows().next().ok_or_else(no_window)?;
        Ok(Served { guest, service, ram, window })
    }
}

/// A guest whose pages are merged and parted again.
#[derive(Debug)]
pub(super) struct Merged {
    served: Served,
    policy: DedupPolicy,
}

impl Merged {
    pub(super) fn new(pages: u64) -> Result<Merged, BenchError> {
        let merged = Merged { served: Served::new(pages)?, policy: DedupPolicy::default() };
        let Served { guest, ram, .. } = &merged.served;
        for gfn in ram.iter() {
            guest.write(gfn.gpa(), &[7; PAGE as usize]).map_err(failed)?;
        }
        Ok(merged)
    }

    /// Parts what is merged, gives all pages the same bytes, and has them looked at once.
    pub(super) fn note(&self) -> Result<(), BenchError> {
        let Served { guest, service, ram, .. } = &self.served;
        guest.unmerge(*ram).map_err(failed)?;
        for gfn in ram.iter() {
            guest.write(gfn.gpa(), &[7]).map_err(failed)?;
        }
        // What was shared is not the next round's: it would be one page more.
        service.stop_dedup();
        service.dedup_once(self.policy);
        Ok(())
    }

    /// The round that merges all pages.
    pub(super) fn merge(&self) -> Result<(), BenchError> {
        let before = self.served.service.dedup_stats().merged;
        let merged = self.served.service.dedup_once(self.policy).merged - before;
        match merged == self.served.ram.frames() - 1 {
            true => Ok(()),
            false => Err(BenchError::Guest(format!("only {merged} pages were merged"))),
        }
    }

    pub(super) fn unmerge(&self) -> Result<(), BenchError> {
        self.served.guest.unmerge(self.served.ram).map_err(failed)
    }

    fn address(&self, page: u64) -> *mut u8 {
        assert!(page < self.served.ram.frames());
        self.served.window.add(page * PAGE).as_u64() as *mut u8
    }

    /// Reads a byte of each page, as the guest would.
    pub(super) fn read_each(&self) {
        for page in 0..self.served.ram.frames() {
            // SAFETY: inside of the window, which is mapped while the guest lives; what is not there is served by
            // its fault thread.
            std::hint::black_box(unsafe { self.address(page).read_volatile() });
        }
    }

    /// Stores to each page, as the guest would; the median, in microseconds. The first page is where the shared frame lies,
    /// and its copy lies elsewhere: one of many.
    pub(super) fn store_each(&self) -> f64 {
        // SAFETY: as in `read_each`; nothing else accesses the page.
        median_of_each(self.served.ram.frames(), |page| unsafe {
            self.address(page).write_volatile(7);
        })
    }
}
