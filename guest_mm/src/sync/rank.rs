//! The order of locks.

use crate::geometry::{LEVELS, Level};

/// Where a lock stands. Who holds one takes only those that stand behind it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Rank {
    /// The thread that looks for duplicates, while it is started, asked or ended.
    Scanner,
    /// The list of guests, which is held while their books are checked.
    Guests,
    /// A block of a guest is being made ready.
    #[cfg_attr(loom, allow(dead_code, reason = "the models make nothing ready"))]
    Expected,
    /// Pages of an image's block are being loaded.
    Loading,
    /// The right to fill a block.
    Filling,
    /// A table page, by how far its level is below the root's: parents before children, never two of one level.
    Table(u8),
    /// A mirror's own.
    Mirror,
    /// A table page that is in no tree, and that nobody can wait for long for.
    Detached,
    /// Short ones, under which no other is taken: the pool's books, lists of free pages, of walkers, of notes.
    Last,
}

impl Rank {
    /// The rank of a table of `level`.
    pub(crate) const fn table(level: Level) -> Rank {
        Rank::Table(LEVELS - level.number())
    }
}
