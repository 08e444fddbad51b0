//! The shape of the radix tree: how many levels, how wide a table is.
//!
//! Production code has Intel's shape: four levels of 512 entries (SDM vol. 3C, 29.3.2 "EPT
//! Translation Mechanism"). Under the model checker the same code runs on two levels of two entries,
//! because loom explores every interleaving and each further entry multiplies them.

/// log2 of the number of entries in a table.
pub const FANOUT_BITS: u32 = if cfg!(loom) { 1 } else { 9 };

/// Entries in a table.
pub const FANOUT: usize = 1 << FANOUT_BITS;

/// Levels of the tree; the root is a table of this level.
pub const LEVELS: u8 = if cfg!(loom) { 2 } else { 4 };

/// log2 of the bytes in a frame. The same under the model checker: it never touches the bytes.
pub const FRAME_SHIFT: u32 = 12;

/// Bytes in a frame.
pub const FRAME_BYTES: u64 = 1 << FRAME_SHIFT;

/// Frames that the whole tree can map.
pub const TREE_FRAMES: u64 = 1 << (FANOUT_BITS * LEVELS as u32);

/// A level of the tree: 1 holds 4 KiB leaves, [`LEVELS`] is the root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Level(u8);

impl Level {
    /// The level of page tables: entries map 4 KiB.
    pub const PT: Level = Level(1);
    /// The level of page directories: entries map 2 MiB or point to a page table.
    pub const PD: Level = Level(2);
    /// The root's level.
    pub const ROOT: Level = Level(LEVELS);

    /// The level with this number.
    ///
    /// # Panics
    /// If there is no such level.
    pub const fn new(number: u8) -> Level {
        assert!(number >= 1 && number <= LEVELS, "no such level");
        Level(number)
    }

    /// Its number, 1 at the leaves.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The level below, or none at the leaves.
    pub const fn below(self) -> Option<Level> {
        if self.0 == 1 { None } else { Some(Level(self.0 - 1)) }
    }

    /// Frames that one entry of this level spans.
    pub const fn entry_frames(self) -> u64 {
        1 << (FANOUT_BITS * (self.0 as u32 - 1))
    }

    /// Frames that one table of this level spans.
    pub const fn table_frames(self) -> u64 {
        1 << (FANOUT_BITS * self.0 as u32)
    }

    /// Which entry of a table of this level translates the guest frame `gfn`.
    pub const fn index(self, gfn: u64) -> usize {
        ((gfn >> (FANOUT_BITS * (self.0 as u32 - 1))) as usize) & (FANOUT - 1)
    }
}
