//! A guest's memory for one race, and what the sides do to it.

use std::sync::{Arc, Mutex, PoisonError};

use guest_mm::addr::{Gfn, GfnRange, Gpa, GpaRange, PageSize};
use guest_mm::copy::NotMapped;
use guest_mm::pin::Pinned;
use guest_mm::pool::BackingChoice;
use guest_mm::prot::Access;
use guest_mm::protocol::Protocol;
use guest_mm::service::WriteError;
use guest_mm::{FaultPolicy, Guest, GuestConfig, Service};
use vm_memory::{Bytes, VolatileSlice};

use super::damage::{Damage, Done, FAILED, attempt};
use super::lab::LabError;
use super::window::Window;

/// Pages of a block.
const BLOCK: u64 = PageSize::Size2M.frames();
const PAGE: u64 = PageSize::Size4K.bytes();

/// How much memory a race needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Blocks of RAM, from address 0 on.
    pub(super) ram: u64,
    /// Blocks of the pool behind it.
    pub(super) pool: u64,
}

/// A service with one guest, whose faults are served by 4 KiB.
pub(super) struct World<P: Protocol> {
    pub(super) guest: Guest<P>,
    pub(super) window: Window,
    service: Service<P>,
    /// Why the guest was stopped.
    stops: Arc<Mutex<Vec<String>>>,
}

/// Page `index` of block `block`.
pub(super) const fn page(block: u64, index: u64) -> Gfn {
    Gfn::new(block * BLOCK + index)
}

/// All pages of block `index`.
pub(super) fn block(index: u64) -> GfnRange {
    range(page(index, 0), BLOCK)
}

/// That page alone.
pub(super) fn only(gfn: Gfn) -> GfnRange {
    range(gfn, 1)
}

fn range(start: Gfn, frames: u64) -> GfnRange {
    GfnRange::new(start, frames).expect("a lab's memory is far below the tables' end")
}

/// The word of a pinned page at `offset`.
pub(super) fn dma_load(pinned: &Pinned<'_>, offset: usize) -> u64 {
    slice(pinned).read_obj(offset).expect("a page holds the word")
}

/// A device's store to a pinned page.
pub(super) fn dma_store(pinned: &Pinned<'_>, offset: usize, value: u64) {
    slice(pinned).write_obj(value, offset).expect("a page holds the word");
}

fn slice<'p>(pinned: &'p Pinned<'_>) -> VolatileSlice<'p> {
    pinned.slices().next().expect("a pin is not empty")
}

impl<P: Protocol> World<P> {
    /// Memory of `size`, untouched.
    ///
    /// # Errors
    /// There is no userfaultfd, or no memory.
    pub(super) fn new(size: Size) -> Result<World<P>, LabError> {
        let bytes = size.pool * PageSize::Size2M.bytes();
        let service = Service::new(BackingChoice::Auto, bytes, PageSize::Size4K)?;
        let stops: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&stops);
        let guest = service.add_guest(GuestConfig {
            ram: vec![range(page(0, 0), size.ram * BLOCK)],
            over: Vec::new(),
            on_missing: None,
            policy: FaultPolicy { pages: PageSize::Size4K },
            fault_threads: 1,
            on_stop: Box::new(move |error| {
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
            }),
        })?;
        let window = Window::of(&guest);
        Ok(World { guest, window, service, stops })
    }

    /// A device's claim on a page, for writing.
    pub(super) fn pin(&self, gfn: Gfn) -> Result<Pinned<'_>, Damage> {
        let bytes = GpaRange::new(gfn.gpa(), PAGE).expect("a page of RAM is a range");
        Ok(self.guest.pin(bytes, Access::Write)?)
    }

    /// The word at `gpa`, through the table.
    pub(super) fn read(&self, gpa: Gpa) -> Result<u64, NotMapped> {
        let mut word = [0; 8];
        self.guest.read(gpa, &mut word).map(|()| u64::from_le_bytes(word))
    }

    /// Likewise.
    pub(super) fn write(&self, gpa: Gpa, value: u64) -> Result<(), WriteError> {
        self.guest.write(gpa, &value.to_le_bytes())
    }

    /// Has the page lie elsewhere than in its place in its block. While a device holds the frame that it had, it gets
    /// another.
    pub(super) fn displace(&self, gfn: Gfn) -> Done {
        let held = self.pin(gfn)?;
        self.guest.unmap(only(gfn))?;
        self.guest.populate(only(gfn))?;
        drop(held);
        Ok(())
    }

    /// Checks the guest's books, which must be at rest.
    pub(super) fn audit(&self) -> Done {
        Ok(self.guest.audit()?)
    }

    /// Takes all down; what is wrong with it.
    pub(super) fn end(self) -> Vec<Damage> {
        let World { guest, window: _, service, stops } = self;
        let stops = std::mem::take(&mut *stops.lock().unwrap_or_else(PoisonError::into_inner));
        let stopped = stops.into_iter().map(|why| Damage::new(FAILED, why));
        let books = attempt(|| Ok(guest.close()?)).err();
        // A guest that could not be closed is still in the pool's books.
        let pool = if books.is_none() { attempt(|| Ok(service.audit()?)).err() } else { None };
        stopped.chain(books).chain(pool).collect()
    }
}
