//! What is measured: a guest whose blocks are collapsed.
#![allow(unsafe_code, reason = "touches the window as a guest would")]

use guest_mm::addr::{Gfn, GfnRange, Hva, PageSize};
use guest_mm::collapse::CollapsePolicy;
use guest_mm::pool::{BackingChoice, BackingKind};
use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm};

use crate::bench::{BenchError, failed};

use super::block::{Accessed, BLOCK, PAGE};

/// Pages of a block.
const PAGES: u64 = BLOCK / PAGE;

/// A guest on huge folios whose faults are served in 4 KiB. It goes before its service.
#[derive(Debug)]
struct Small {
    guest: Guest,
    _service: GuestMm,
    window: Hva,
    blocks: u64,
}

impl Small {
    fn new(blocks: u64, pool_blocks: u64) -> Result<Small, BenchError> {
        let choice = BackingChoice::Only(BackingKind::Tmpfs);
        let service =
            GuestMm::new(choice, pool_blocks * BLOCK, PageSize::Size4K).map_err(failed)?;
        let guest = service
            .add_guest(GuestConfig {
                ram: vec![GfnRange::new(Gfn::new(0), blocks * PAGES).map_err(failed)?],
                over: Vec::new(),
                on_missing: None,
                policy: FaultPolicy { pages: PageSize::Size4K },
                fault_threads: 1,
                on_stop: Box::new(|error| eprintln!("error: {error}")),
            })
            .map_err(failed)?;
        let no_window = || BenchError::Guest("it has no window".into());
        let (_, window) = guest.windows().next().ok_or_else(no_window)?;
        Ok(Small { guest, _service: service, window, blocks })
    }

    fn pages(&self, first: u64, pages: u64) -> Result<GfnRange, BenchError> {
        GfnRange::new(Gfn::new(first), pages).map_err(failed)
    }

    fn blocks(&self, first: u64, blocks: u64) -> Result<GfnRange, BenchError> {
        self.pages(first * PAGES, blocks * PAGES)
    }

    fn populate(&self, range: GfnRange) -> Result<(), BenchError> {
        self.guest.populate(range).map(drop).map_err(failed)
    }

    fn unmap(&self, range: GfnRange) -> Result<(), BenchError> {
        self.guest.unmap(range).map(drop).map_err(failed)
    }

    /// Touches a page as the guest would.
    fn touch(&self, page: u64) {
        assert!(page < self.blocks * PAGES);
        let address = self.window.add(page * PAGE).as_u64() as *mut u8;
        // SAFETY: inside of the window, which is mapped while the guest lives; what is not there is served
        // by its fault thread, and nothing else accesses it.
        unsafe { address.write_volatile(1) };
    }
}

/// Blocks whose pages lie in order: a collapse promotes them.
#[derive(Debug)]
pub(super) struct InPlace(Small);

impl InPlace {
    /// `blocks` of them, empty.
    pub(super) fn new(blocks: u64) -> Result<InPlace, BenchError> {
        Ok(InPlace(Small::new(blocks, blocks)?))
    }

    /// Has every page there as a leaf of its own, in both mappings.
    pub(super) fn refill(&self) -> Result<(), BenchError> {
        let ram = self.0.blocks(0, self.0.blocks)?;
        self.0.unmap(ram)?;
        self.0.populate(ram)?;
        (0..self.0.blocks * PAGES).for_each(|page| self.0.touch(page));
        Ok(())
    }

    /// Promotes all blocks, and touches each once.
    pub(super) fn promote(&self) -> Result<(), BenchError> {
        let ram = self.0.blocks(0, self.0.blocks)?;
        let report = self.0.guest.collapse(ram, CollapsePolicy::default()).map_err(failed)?;
        if report.promoted != self.0.blocks {
            return Err(BenchError::Guest(format!("blocks were not promoted: {report:?}")));
        }
        (0..self.0.blocks).for_each(|block| self.0.touch(block * PAGES));
        Ok(())
    }

    /// Splits all blocks.
    pub(super) fn split(&self) -> Result<(), BenchError> {
        let ram = self.0.blocks(0, self.0.blocks)?;
        self.0.guest.split(ram, PageSize::Size4K).map(drop).map_err(failed)
    }
}

/// Blocks whose pages lie anywhere: a collapse copies them.
///
/// The first blocks of RAM are *holders*: a page of each takes a block of the pool, until none is whole. What
/// the blocks behind them are filled with then comes from the holders' blocks, the oldest first, and as they
/// are filled page by page in turns, no two neighbours lie side by side. When the holders go, the younger
/// ones leave whole blocks.
#[derive(Debug)]
pub(super) struct OutOfPlace {
    small: Small,
    holders: u64,
}

impl OutOfPlace {
    /// `blocks` of them, empty.
    pub(super) fn new(blocks: u64) -> Result<OutOfPlace, BenchError> {
        // Each holder that breaks up yields all pages of its block but one.
        let broken = (blocks * PAGES).div_ceil(PAGES - 1);
        let holders = broken + blocks + 1;
        Ok(OutOfPlace { small: Small::new(holders + blocks, holders)?, holders })
    }

    /// Scatters every block anew.
    pub(super) fn scatter(&self, accessed: Accessed) -> Result<(), BenchError> {
        let small = &self.small;
        small.unmap(small.blocks(0, small.blocks)?)?;
        for holder in 0..self.holders {
            small.populate(small.pages(holder * PAGES, 1)?)?;
        }
        for index in 0..PAGES {
            for block in self.holders..small.blocks {
                small.populate(small.pages(block * PAGES + index, 1)?)?;
            }
        }
        small.unmap(small.blocks(0, self.holders)?)?;
        if accessed == Accessed::Yes {
            (self.holders * PAGES..small.blocks * PAGES).for_each(|page| small.touch(page));
        }
        Ok(())
    }

    /// Has the pages of a block in the caches.
    pub(super) fn warm(&self, block: u64) -> Result<(), BenchError> {
        let first = (self.holders + block) * PAGES;
        let mut page = [0; PAGE as usize];
        (first..first + PAGES)
            .try_for_each(|gfn| self.small.guest.read(Gfn::new(gfn).gpa(), &mut page))
            .map_err(failed)
    }

    /// Copies a block together, and touches it once.
    pub(super) fn collapse(&self, block: u64) -> Result<(), BenchError> {
        let range = self.small.blocks(self.holders + block, 1)?;
        let report = self.small.guest.collapse(range, CollapsePolicy::default()).map_err(failed)?;
        if report.copied != 1 {
            return Err(BenchError::Guest(format!("a block was not copied: {report:?}")));
        }
        self.small.touch((self.holders + block) * PAGES);
        Ok(())
    }
}
