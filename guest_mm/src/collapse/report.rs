//! What a collapse may do, and what it did.

use crate::addr::{Gfn, GfnRange};
use crate::entry::Marker;

/// What a collapse may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CollapsePolicy {
    /// Pages of a block, of 512, that may be absent and are then filled with zeroes. With 0 no memory is
    /// spent that the guest has not touched.
    pub max_holes: u32,
    /// Whether pages may be moved.
    pub copying: Copying,
}

/// Whether pages may be moved to collapse their block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Copying {
    /// They may.
    #[default]
    Allowed,
    /// Blocks are promoted in place or stay as they are.
    Never,
}

/// What became of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Collapsed {
    /// Its pages lay in order: no byte was moved.
    Promoted {
        /// Pages that were filled with zeroes.
        holes: u64,
    },
    /// Its pages were gathered in another block.
    Copied {
        /// Pages that were copied.
        pages: u64,
        /// Pages that were filled with zeroes.
        holes: u64,
    },
    /// It was mapped huge before.
    AlreadyHuge,
    /// It stays as it is.
    Skipped(Skip),
}

/// Why a block stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Skip {
    /// Its pages would have to move, and a device has one pinned.
    #[error("a device has guest frame {gfn} pinned")]
    Pinned {
        /// The first such page.
        gfn: Gfn,
    },
    /// A page is marked.
    #[error("guest frame {gfn} is marked {marker:?}")]
    Marked {
        /// The first such page.
        gfn: Gfn,
        /// How.
        marker: Marker,
    },
    /// The guest has given a page back: filled, it would cost what was just saved.
    #[error("the guest has given guest frame {gfn} back")]
    Returned {
        /// The first such page.
        gfn: Gfn,
    },
    /// A frame is mapped elsewhere too.
    #[error("guest frame {gfn} is shared")]
    Shared {
        /// The first such page.
        gfn: Gfn,
    },
    /// More pages are absent than the policy fills.
    #[error("{absent} pages are absent")]
    Holes {
        /// How many.
        absent: u32,
    },
    /// Not all pages allow the same.
    #[error("guest frame {gfn} has other rights than those before it")]
    MixedRights {
        /// The first that differs.
        gfn: Gfn,
    },
    /// Its pages would have to move, and the policy is not to.
    #[error("its pages do not lie in order")]
    Scattered,
    /// Its pages would have to move, and the pool has no whole block for them.
    #[error("the pool has no whole block left")]
    NoBlock,
    /// Part of it is not RAM.
    #[error("the block is not all RAM")]
    NotWhole,
    /// Nothing of it is mapped by small pages.
    #[error("nothing of it is mapped")]
    Untouched,
    /// Another collapse has it.
    #[error("another collapse is at work on it")]
    Busy,
}

impl Skip {
    /// That the page at `gfn` is marked.
    pub(super) fn marked(gfn: Gfn, marker: Marker) -> Skip {
        match marker {
            Marker::Returned => Skip::Returned { gfn },
            marker => Skip::Marked { gfn, marker },
        }
    }

    /// The reasons, for counts by [`Skip::index`].
    pub const NAMES: [&'static str; 11] = [
        "pinned",
        "marked",
        "shared",
        "holes",
        "mixed_rights",
        "scattered",
        "no_block",
        "not_whole",
        "untouched",
        "busy",
        "returned",
    ];

    /// Its place in [`Skip::NAMES`].
    pub const fn index(self) -> usize {
        match self {
            Skip::Pinned { .. } => 0,
            Skip::Marked { .. } => 1,
            Skip::Shared { .. } => 2,
            Skip::Holes { .. } => 3,
            Skip::MixedRights { .. } => 4,
            Skip::Scattered => 5,
            Skip::NoBlock => 6,
            Skip::NotWhole => 7,
            Skip::Untouched => 8,
            Skip::Busy => 9,
            Skip::Returned { .. } => 10,
        }
    }
}

/// A block that stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// The block.
    pub block: GfnRange,
    /// Why.
    pub why: Skip,
}

/// What became of the blocks of a range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CollapseReport {
    /// Blocks that were promoted in place.
    pub promoted: u64,
    /// Blocks whose pages were gathered in another.
    pub copied: u64,
    /// Blocks that were mapped huge before.
    pub already_huge: u64,
    /// Pages that were filled with zeroes.
    pub holes_filled: u64,
    /// Blocks that stay as they are.
    pub skipped: Vec<Skipped>,
}

impl CollapseReport {
    pub(super) fn add(&mut self, block: GfnRange, collapsed: Collapsed) {
        match collapsed {
            Collapsed::Promoted { holes } => {
                self.promoted += 1;
                self.holes_filled += holes;
            }
            Collapsed::Copied { holes, .. } => {
                self.copied += 1;
                self.holes_filled += holes;
            }
            Collapsed::AlreadyHuge => self.already_huge += 1,
            Collapsed::Skipped(why) => self.skipped.push(Skipped { block, why }),
        }
    }
}
