//! Where what lies in the storm's memory.
//!
//! ```text
//!   block 0            the guest's image
//!   block 1            its last page is the control page
//!   2 ..               blocks under test; the last page of each is loose: nobody's, taken away and put back elsewhere
//!   then               the guest's notes
//!   then               a block for each disk: rings, headers and the rest of its sectors; its last page is loose, too
//!   then               filler: populated and taken away, so that the pool is exhausted again and again
//! ```
//!
//! The pool holds all of it but the filler, and a few blocks more: the places that copies go to.

use guest_mm::addr::{Gfn, GfnRange, Gpa, PageSize};

use super::{Drive, Options};

/// Pages of a block.
pub(super) const BLOCK: u64 = 512;
/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
/// Bytes of a slot: a number.
pub(super) const SLOT: u64 = 8;
/// Blocks before those under test.
const BEFORE: u64 = 2;
/// Blocks of the pool that are free at rest.
const SPARE: u64 = 8;
/// Blocks of filler: more than the pool has left.
const FILLER: u64 = SPARE + 2;

/// Words of the control page: see the guests' README.
pub(super) const STOP: u64 = 0;
pub(super) const PASSES: u64 = 1;

/// The layout of one storm.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    blocks: u64,
    notes: u64,
    disks: u64,
}

impl Place {
    pub(super) fn new(options: &Options) -> Place {
        let blocks = options.blocks;
        let notes = (blocks * BLOCK * options.devices * SLOT).div_ceil(BLOCK * PAGE);
        let disks = if options.drive == Drive::Disk { options.devices } else { 0 };
        Place { blocks, notes, disks }
    }

    /// Blocks under test.
    pub(super) fn nr_blocks(self) -> u64 {
        self.blocks
    }

    /// Blocks that the weather moves: those under test, and the disks'.
    pub(super) fn nr_moved(self) -> u64 {
        self.blocks + self.disks
    }

    /// Pages under test, loose ones included.
    pub(super) fn nr_pages(self) -> u64 {
        self.blocks * BLOCK
    }

    /// The guest's RAM, in bytes.
    pub(super) fn ram_bytes(self) -> u64 {
        (self.filler_start() + FILLER * BLOCK) * PAGE
    }

    /// The pool, in bytes.
    pub(super) fn pool_bytes(self) -> u64 {
        (self.filler_start() + SPARE * BLOCK) * PAGE
    }

    /// The guest's command line.
    pub(super) fn cmdline(self, options: &Options) -> String {
        let (start, bytes) = (BEFORE * BLOCK * PAGE, self.nr_pages() * PAGE);
        format!("dma={start:#x} limit={bytes:#x} slots={} order=random", options.devices)
    }

    /// The control page.
    pub(super) fn control(self) -> Gpa {
        Gpa::new((BEFORE * BLOCK - 1) * PAGE)
    }

    /// Page `index` of those under test.
    pub(super) fn page(self, index: u64) -> Gpa {
        Gpa::new((BEFORE * BLOCK + index) * PAGE)
    }

    /// The block of disk `number`.
    pub(super) fn disk(self, number: u64) -> Gpa {
        Gpa::new(self.moved_start(self.blocks + number) * PAGE)
    }

    /// Block `index` of those that are moved.
    pub(super) fn block(self, index: u64) -> GfnRange {
        run(self.moved_start(index), BLOCK)
    }

    /// The loose page of block `index` of those that are moved.
    pub(super) fn loose(self, index: u64) -> GfnRange {
        run(self.moved_start(index) + BLOCK - 1, 1)
    }

    /// All that has to be there before the guest runs, for the guest takes no page while the pool is exhausted.
    pub(super) fn held(self) -> GfnRange {
        run(0, self.filler_start())
    }

    /// The filler.
    pub(super) fn filler(self) -> GfnRange {
        run(self.filler_start(), FILLER * BLOCK)
    }

    /// The first page of block `index` of those that are moved; the guest wants its notes right behind the first kind.
    fn moved_start(self, index: u64) -> u64 {
        let notes = if index < self.blocks { 0 } else { self.notes };
        (BEFORE + notes + index) * BLOCK
    }

    fn filler_start(self) -> u64 {
        self.moved_start(self.nr_moved())
    }
}

/// `frames` of RAM from guest frame `start` on.
pub(super) fn run(start: u64, frames: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), frames).expect("the storm's memory is far below the tables' end")
}

const _: () = assert!(PageSize::Size2M.frames() == BLOCK && PageSize::Size4K.bytes() == PAGE);
