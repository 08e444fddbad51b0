//! What a guest is made of, and why there is none.

use crate::addr::{GfnRange, Gpa, PageSize};
use crate::copy::NotMapped;
use crate::fault::FaultError;
use crate::image::Image;
use crate::mirrors::uffd::WindowError;
use crate::pool::BackingKind;
use crate::space::{Answer, FaultPolicy, Sharing};
use crate::sync::Arc;

/// What a guest is made of.
pub struct GuestConfig {
    /// Its RAM that begins as zeroes: each range starts at a block.
    pub ram: Vec<GfnRange>,
    /// Its RAM that begins as an image.
    pub over: Vec<ImageRam>,
    /// What one fault fills.
    pub policy: FaultPolicy,
    /// Threads that serve its faults.
    pub fault_threads: usize,
    /// Called, on the thread that met it, for a page that is marked missing: asks for it, once or more often. Who waits
    /// for the page goes on when it is placed, or finds out that it never comes. Without this, touching such a page stops the
    /// guest.
    pub on_missing: Option<Box<dyn Fn(Gpa) -> Answer + Send + Sync>>,
    /// Called, on a fault thread, for a violation that cannot be served. When it returns, the vCPU that
    /// made the access must have been sent out of the guest, so that it leaves `KVM_RUN` as soon as the
    /// access is let go, which it then is; the others have to follow soon.
    pub on_stop: Box<dyn Fn(&FaultError) + Send + Sync>,
}

/// A range of RAM that lies over an image.
#[derive(Clone, Debug)]
pub struct ImageRam {
    /// The guest frames; they start at a block.
    pub range: GfnRange,
    /// What they hold. It comes from the same service.
    pub image: Arc<Image>,
    /// The image's page at the start of the range: the first of a block of 512.
    pub first: u64,
    /// What becomes of stores.
    pub sharing: Sharing,
}

/// Why bytes could not be written to guest memory.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteError {
    /// Part of it is not populated.
    #[error(transparent)]
    NotMapped(#[from] NotMapped),
    /// A page cannot be made the guest's own.
    #[error(transparent)]
    Fault(#[from] FaultError),
}

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A range of RAM starts in the middle of a block.
    #[error("RAM at {0} does not start at a multiple of 2 MiB")]
    Unaligned(GfnRange),
    /// Two ranges of RAM overlap.
    #[error("RAM at {0} and at {1} overlaps")]
    Overlap(GfnRange, GfnRange),
    /// A range of RAM ends in the middle of a page of the pool.
    #[error("RAM at {range} does not end at a multiple of {granule}, the page of a {kind} pool")]
    Ragged {
        /// The range.
        range: GfnRange,
        /// What the pool lies on.
        kind: BackingKind,
        /// Its smallest page.
        granule: PageSize,
    },
    /// A range over an image reaches past the image's end.
    #[error(
        "RAM at {range} lies over {pages} pages of the image {} from page {first} on, and the image has {has}: it needs \
         a larger image, or less RAM over it",
        image.display(), pages = range.frames()
    )]
    PastImage {
        /// The range.
        range: GfnRange,
        /// Its image.
        image: std::path::PathBuf,
        /// The image's page at the start of the range.
        first: u64,
        /// Pages that the image has.
        has: u64,
    },
    /// A range over an image starts in the middle of a block of the image.
    #[error(
        "RAM at {range} starts at page {first} of the image {}, which is not a multiple of 512, as a block's first page is",
        image.display()
    )]
    UnalignedImage {
        /// The range.
        range: GfnRange,
        /// Its image.
        image: std::path::PathBuf,
        /// The image's page at its start.
        first: u64,
    },
    /// The image's frames are another pool's.
    #[error("the image {} belongs to another service: open it on the one that the guest is of", image.display())]
    OtherService {
        /// Which.
        image: std::path::PathBuf,
    },
    /// Pages of this pool cannot be mapped one by one.
    #[error("a {kind} pool is mapped in pages of {granule}, so faults cannot be served in {pages}")]
    Granule {
        /// What the pool lies on.
        kind: BackingKind,
        /// Its smallest page.
        granule: PageSize,
        /// What was asked for.
        pages: PageSize,
    },
    /// There is no window.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// There is no thread to serve it.
    #[error("cannot start a fault thread: {0}")]
    Thread(std::io::Error),
}
