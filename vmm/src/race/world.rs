//! A guest's memory for one race, and what the sides do to it.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use guest_mm::addr::{Gfn, GfnRange, Gpa, GpaRange, PageSize};
use guest_mm::copy::NotMapped;
use guest_mm::pin::Pinned;
use guest_mm::pool::BackingChoice;
use guest_mm::prot::Access;
use guest_mm::service::WriteError;
use guest_mm::share::MergeError;
use guest_mm::{Answer, FaultPolicy, Guest, GuestConfig, ImageRam, Service, Sharing};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, VolatileSlice};

use super::damage::{Damage, Done, FAILED, attempt};
use super::engine::{Chosen, Engine};
use super::error::LabError;
use super::window::Window;

/// A page holds what nobody wrote to it.
const WRONG_BYTES: &str = "wrong bytes";

/// Pages of a block.
const BLOCK: u64 = PageSize::Size2M.frames();
const PAGE: u64 = PageSize::Size4K.bytes();

/// The memory that a race needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Blocks of RAM, from address 0 on.
    ram: u64,
    /// Blocks of the pool behind it.
    pool: u64,
    /// What the RAM begins as.
    begins: Begins,
    /// What one fault fills.
    faults: PageSize,
}

/// What RAM begins as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Begins {
    /// All zeroes.
    Zeroes,
    /// The pages of an image, each with its [`image_word`].
    Image,
}

/// A service with one guest. Who touches a missing page waits until it is placed.
pub(super) struct World {
    pub(super) guest: Guest<Chosen>,
    pub(super) window: Window,
    service: Service<Chosen>,
    /// Why the guest was stopped.
    stops: Arc<Mutex<Vec<String>>>,
}

impl Size {
    /// So many blocks of RAM that begins as zeroes, in a pool of so many, filled by 4 KiB.
    pub(super) const fn blocks(ram: u64, pool: u64) -> Size {
        Size { ram, pool, begins: Begins::Zeroes, faults: PageSize::Size4K }
    }

    /// The RAM lies over an image, which takes as much of the pool once it is loaded.
    pub(super) const fn over_image(self) -> Size {
        Size { begins: Begins::Image, ..self }
    }

    /// Faults are served by 2 MiB where they can be.
    pub(super) const fn by_blocks(self) -> Size {
        Size { faults: PageSize::Size2M, ..self }
    }
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

/// A page that begins with `word`.
pub(super) fn page_of(word: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    bytes[..8].copy_from_slice(&word.to_le_bytes());
    bytes
}

/// What the image has at the beginning of the page `gfn`.
pub(super) const fn image_word(gfn: Gfn) -> u64 {
    1000 + gfn.as_u64()
}

/// A file without a name, with the pages of an image of `blocks`.
fn image_file(blocks: u64) -> std::io::Result<File> {
    let mut bytes = vec![0; (blocks * PageSize::Size2M.bytes()) as usize];
    for (index, page) in bytes.chunks_exact_mut(PAGE as usize).enumerate() {
        page.copy_from_slice(&page_of(image_word(Gfn::new(index as u64))));
    }
    let mut file = File::from(memfd_create("image", MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    Ok(file)
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

impl World {
    /// Memory of `size`, untouched, on the engine of this run.
    ///
    /// # Errors
    /// There is no userfaultfd, or no memory.
    pub(super) fn new(_engine: &Engine, size: Size) -> Result<World, LabError> {
        let bytes = size.pool * PageSize::Size2M.bytes();
        let service = Service::new(BackingChoice::Auto, bytes, PageSize::Size4K)?;
        let stops: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&stops);
        let ram = range(page(0, 0), size.ram * BLOCK);
        let (ram, over) = match size.begins {
            Begins::Zeroes => (vec![ram], Vec::new()),
            Begins::Image => {
                let file = image_file(size.ram).map_err(LabError::ImageFile)?;
                // The service opens it anew, and reads it for as long as it needs it.
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let image = service.open_image(Path::new(&path))?;
                let over = ImageRam { range: ram, image, first: 0, sharing: Sharing::Private };
                (Vec::new(), vec![over])
            }
        };
        let guest = service.add_guest(GuestConfig {
            ram,
            over,
            on_missing: Some(Box::new(|_| Answer::Asked)),
            policy: FaultPolicy { pages: size.faults },
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
        self.pin_for(gfn, Access::Write)
    }

    /// A device's claim on a page.
    pub(super) fn pin_for(&self, gfn: Gfn, access: Access) -> Result<Pinned<'_>, Damage> {
        let bytes = GpaRange::new(gfn.gpa(), PAGE).expect("a page of RAM is a range");
        Ok(self.guest.pin(bytes, access)?)
    }

    /// Makes two pages one frame, or leaves them as they are.
    pub(super) fn merge(&self, one: Gfn, other: Gfn) -> Done {
        match self.service.merge((&self.guest, one), (&self.guest, other)) {
            Err(MergeError::Mirror(error)) => Err(error.into()),
            _ => Ok(()),
        }
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

    /// Checks what the guest reads at the beginning of the page.
    pub(super) fn sees(&self, gfn: Gfn, word: u64) -> Done {
        let (at, seen) = (gfn.gpa(), self.window.load(gfn.gpa()));
        if seen == word {
            return Ok(());
        }
        Err(Damage::new(WRONG_BYTES, format!("the guest reads {seen} at {at} instead of {word}")))
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

    /// The name of the first book that is wrong.
    pub(super) fn wrong_book(&self) -> Option<String> {
        let wrong = self.guest.audit().err()?.to_string();
        Some(wrong.split(':').next().unwrap_or_default().to_owned())
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
