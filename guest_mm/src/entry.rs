//! One 64-bit word of a table, and what it means.
//!
//! Bit layout: Intel SDM vol. 3C, 29.3.2, tables 29-1 to 29-7 (PML4E, PDPTE, PDE, PTE and their leaf
//! forms). The words are never walked by hardware, but they could be: what the SDM reserves is zero.
//!
//! ```text
//!  63  62..57  56..52          51..12              11  10 9 8   7    6   5..3   2 1 0
//!  sve   -     marker, or own  frame or table      mk  -  - -  leaf  ipat  mt   X W R
//! ```
//!
//! * a *table* has R, W and X set and no more: the leaf alone decides;
//! * a *leaf* has R, memory type 6 (write-back), and bit 7 where the level is 2 or 3; of the bits that the CPU
//!   ignores, 52 says that a store is given a copy, 53 that the frame is an image's;
//! * an entry with R = W = X = 0 is not present, and the CPU ignores its other bits (29.3.2): there a
//!   *marker* sets bit 11 and its kind in 54:52. All zero is *absent*. Kind 3 is a *frozen* table: one that a
//!   collapse has taken out of sight, with the table in bits 51:12.

use crate::addr::FrameNo;
use crate::geometry::{FRAME_SHIFT, Level};
use crate::prot::{Access, Prot};

/// Read access (bit 0).
const READ: u64 = 1 << 0;
/// Write access (bit 1).
const WRITE: u64 = 1 << 1;
/// Execute access (bit 2).
const EXEC: u64 = 1 << 2;
/// EPT memory type of a leaf (bits 5:3): 6 is write-back (table 29-6).
const MEMORY_TYPE_WB: u64 = 6 << 3;
/// The memory type's field.
const MEMORY_TYPE_MASK: u64 = 7 << 3;
/// Set in a PDPTE or PDE that is a leaf (bit 7); ignored in a PTE, reserved in a PML4E.
const LEAF: u64 = 1 << 7;
/// Ignored by the CPU (bit 11): ours, tells a marker from an absent entry.
const MARKER: u64 = 1 << 11;
/// Ignored by the CPU in an entry that is not present (bits 54:52): ours, the marker's kind.
const MARKER_KIND_SHIFT: u32 = 52;
/// Ignored by the CPU in a leaf (bit 52): a store is given a copy.
const COPY_ON_WRITE: u64 = 1 << 52;
/// Ignored by the CPU in a leaf (bit 53): the frame is an image's.
const OF_IMAGE: u64 = 1 << 53;
/// The kind of a frozen table.
const FROZEN: u64 = 3 << MARKER_KIND_SHIFT;
/// Bits 51:12: the frame of a leaf, the table of an entry that is none.
const ADDRESS_MASK: u64 = ((1 << 52) - 1) & !((1 << FRAME_SHIFT) - 1);

/// Which table an entry points to: its index in the arena of table pages, as a leaf's frame is an
/// index in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeNo(u32);

impl NodeNo {
    /// The table with this index.
    pub const fn new(index: u32) -> NodeNo {
        NodeNo(index)
    }

    /// Its index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A present entry that maps memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Leaf {
    /// The first frame that it maps.
    pub frame: FrameNo,
    /// What the guest may do.
    pub prot: Prot,
    /// Whose frame it is.
    pub source: Source,
}

/// Whose frame a leaf maps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// The guest's, alone or together with others: it has a reference on it.
    Guest,
    /// An image's, which keeps it for as long as any guest lies over the image.
    Image,
}

impl Leaf {
    /// A leaf of the guest's own.
    pub const fn own(frame: FrameNo, prot: Prot) -> Leaf {
        Leaf { frame, prot, source: Source::Guest }
    }

    /// A leaf that maps the frame of an image.
    pub const fn image(frame: FrameNo, prot: Prot) -> Leaf {
        Leaf { frame, prot, source: Source::Image }
    }
}

/// An entry that is not present and says why.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Marker {
    /// The page is still elsewhere (post-copy).
    Missing,
    /// Nobody may touch it.
    Guard,
    /// Its contents are lost.
    Poison,
    /// The guest has given it back, and may take it again: a touch finds zeroes, and nobody else fills it.
    Returned,
}

/// What a word means at its level.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Entry {
    /// Nothing yet: the first touch fills it with zeroes.
    Absent,
    /// Points to a table of the level below.
    Table(NodeNo),
    /// Maps memory.
    Leaf(Leaf),
    /// Not present, with a meaning.
    Marker(Marker),
    /// Not present for now: a table whose pages are being collapsed. Who holds that table's lock decides
    /// what comes of it; walkers find nothing, writers wait for the lock.
    Frozen(NodeNo),
}

/// A word that means nothing: a bug or a broken memory chip, never a state of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the level-{level} table entry {raw:#018x} has no meaning")]
pub struct Malformed {
    /// The word.
    pub raw: u64,
    /// The level of the table that it was read from.
    pub level: u8,
}

impl Marker {
    /// Every kind.
    pub const ALL: [Marker; 4] = [Marker::Missing, Marker::Guard, Marker::Poison, Marker::Returned];

    /// Its place in [`Marker::ALL`] and in counters.
    pub const fn index(self) -> usize {
        match self {
            Marker::Missing => 0,
            Marker::Guard => 1,
            Marker::Poison => 2,
            Marker::Returned => 3,
        }
    }

    /// Its kind in an entry's bits: 3 is a frozen table's.
    const fn kind(self) -> u64 {
        match self {
            Marker::Missing => 0,
            Marker::Guard => 1,
            Marker::Poison => 2,
            Marker::Returned => 4,
        }
    }
}

impl Entry {
    /// The word for it in a table of `level`.
    ///
    /// # Panics
    /// If the format has no such entry at this level: a leaf above level 3, a table below level 2.
    pub const fn encode(self, level: Level) -> u64 {
        match self {
            Entry::Absent => 0,
            Entry::Table(node) => {
                assert!(level.number() >= 2, "a page table has no tables below it");
                READ | WRITE | EXEC | ((node.0 as u64) << FRAME_SHIFT)
            }
            Entry::Leaf(leaf) => {
                assert!(level.number() <= 3, "the format has no leaves at this level");
                let size = if level.number() >= 2 { LEAF } else { 0 };
                let source = source_bits(leaf.source);
                READ | prot_bits(leaf.prot) | source | MEMORY_TYPE_WB | size | leaf.frame.offset()
            }
            Entry::Marker(marker) => MARKER | (marker.kind() << MARKER_KIND_SHIFT),
            Entry::Frozen(node) => {
                assert!(level.number() >= 2, "a page table has no tables below it");
                MARKER | FROZEN | ((node.0 as u64) << FRAME_SHIFT)
            }
        }
    }

    /// The table that `raw`, of a level above 1, points to: what a walk asks of every word on its way.
    /// As the CPU does it, without a look at what a sound word never holds.
    #[inline]
    pub(crate) const fn table(raw: u64) -> Option<NodeNo> {
        if raw & (READ | LEAF) == READ { Some(NodeNo(address(raw))) } else { None }
    }

    /// The first frame of the leaf `raw`, known not to be a table, if it allows `access`.
    #[inline]
    pub(crate) const fn frame_for(raw: u64, access: Access) -> Option<FrameNo> {
        let needed = match access {
            Access::Read => READ,
            Access::Write => READ | WRITE,
        };
        if raw & needed == needed { Some(FrameNo::new(address(raw))) } else { None }
    }

    /// Whether the leaf `raw` is the guest's own.
    #[inline]
    pub(crate) const fn is_of_guest(raw: u64) -> bool {
        raw & OF_IMAGE == 0
    }

    /// What the word `raw` means in a table of `level`.
    ///
    /// # Errors
    /// [`Malformed`] for a word that [`Entry::encode`] never makes.
    pub const fn decode(raw: u64, level: Level) -> Result<Entry, Malformed> {
        let malformed = Err(Malformed { raw, level: level.number() });
        let address = (raw & ADDRESS_MASK) >> FRAME_SHIFT;
        if address > u32::MAX as u64 {
            return malformed;
        }
        let low = raw & !ADDRESS_MASK;
        if raw == 0 {
            Ok(Entry::Absent)
        } else if raw & (READ | WRITE | EXEC) == 0 {
            let kind = raw >> MARKER_KIND_SHIFT;
            if level.number() >= 2 && low == MARKER | FROZEN {
                return Ok(Entry::Frozen(NodeNo(address as u32)));
            }
            match (raw & ((1 << MARKER_KIND_SHIFT) - 1) == MARKER, kind) {
                (true, 0) => Ok(Entry::Marker(Marker::Missing)),
                (true, 1) => Ok(Entry::Marker(Marker::Guard)),
                (true, 2) => Ok(Entry::Marker(Marker::Poison)),
                (true, 4) => Ok(Entry::Marker(Marker::Returned)),
                _ => malformed,
            }
        } else if level.number() >= 2 && raw & LEAF == 0 {
            match low == READ | WRITE | EXEC {
                true => Ok(Entry::Table(NodeNo(address as u32))),
                false => malformed,
            }
        } else {
            let leaf_bit = if level.number() >= 2 { LEAF } else { 0 };
            let prot = match (low & (WRITE | EXEC), low & COPY_ON_WRITE != 0) {
                (0, false) => Prot::R,
                (0, true) => Prot::Rc,
                (EXEC, false) => Prot::Rx,
                (EXEC, true) => Prot::Rxc,
                (WRITE, _) => Prot::Rw,
                _ => Prot::Rwx,
            };
            let source = if low & OF_IMAGE == 0 { Source::Guest } else { Source::Image };
            let expected = READ | prot_bits(prot) | source_bits(source) | MEMORY_TYPE_WB | leaf_bit;
            if level.number() > 3 || low & MEMORY_TYPE_MASK != MEMORY_TYPE_WB || low != expected {
                return malformed;
            }
            Ok(Entry::Leaf(Leaf { frame: FrameNo::new(address as u32), prot, source }))
        }
    }
}

const fn address(raw: u64) -> u32 {
    ((raw & ADDRESS_MASK) >> FRAME_SHIFT) as u32
}

const fn prot_bits(prot: Prot) -> u64 {
    (if prot.writable() { WRITE } else { 0 })
        | (if prot.executable() { EXEC } else { 0 })
        | (if prot.copies_on_write() { COPY_ON_WRITE } else { 0 })
}

const fn source_bits(source: Source) -> u64 {
    match source {
        Source::Guest => 0,
        Source::Image => OF_IMAGE,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = (Entry, Level)> {
        let leaf = (any::<u32>(), 0..Prot::ALL.len(), any::<bool>(), 1..=3u8);
        let leaf = leaf.prop_map(|(frame, prot, image, level)| {
            let source = if image { Source::Image } else { Source::Guest };
            let leaf = Leaf { frame: FrameNo::new(frame), prot: Prot::ALL[prot], source };
            (Entry::Leaf(leaf), Level::new(level))
        });
        let table = (any::<u32>(), 2..=4u8)
            .prop_map(|(node, level)| (Entry::Table(NodeNo::new(node)), Level::new(level)));
        let marker = (0..Marker::ALL.len(), 1..=4u8)
            .prop_map(|(kind, level)| (Entry::Marker(Marker::ALL[kind]), Level::new(level)));
        let absent = (1..=4u8).prop_map(|level| (Entry::Absent, Level::new(level)));
        let frozen = (any::<u32>(), 2..=4u8)
            .prop_map(|(node, level)| (Entry::Frozen(NodeNo::new(node)), Level::new(level)));
        prop_oneof![leaf, table, marker, absent, frozen]
    }

    proptest! {
        #[test]
        fn every_entry_survives_the_round_trip((entry, level) in entries()) {
            prop_assert_eq!(Entry::decode(entry.encode(level), level), Ok(entry));
        }

        #[test]
        fn every_word_that_decodes_encodes_to_itself(raw in any::<u64>(), level in 1..=4u8) {
            let level = Level::new(level);
            if let Ok(entry) = Entry::decode(raw, level) {
                prop_assert_eq!(entry.encode(level), raw);
            }
        }

        #[test]
        fn a_walk_reads_the_same_from_a_word_as_its_decoding((entry, level) in entries()) {
            let raw = entry.encode(level);
            let upper = level > Level::PT;
            let table = if upper { Entry::table(raw) } else { None };
            prop_assert_eq!(table.map(Entry::Table), matches!(entry, Entry::Table(_)).then_some(entry));
            if table.is_none() {
                for access in [Access::Read, Access::Write] {
                    let frame = match entry {
                        Entry::Leaf(leaf) if leaf.prot.allows(access) => Some(leaf.frame),
                        _ => None,
                    };
                    prop_assert_eq!(Entry::frame_for(raw, access), frame);
                }
            }
        }

        #[test]
        fn what_the_sdm_reserves_is_zero((entry, level) in entries()) {
            let raw = entry.encode(level);
            match entry {
                // Table 29-1 and 29-3: bits 7:3 of an entry that points to a table.
                Entry::Table(_) => prop_assert_eq!(raw & 0xf8, 0),
                // Tables 29-2 and 29-4: the bits between bit 12 and the leaf's alignment are the
                // address's own; memory type 2, 3 and 7 would be misconfigurations.
                Entry::Leaf(_) => prop_assert_eq!((raw >> 3) & 7, 6),
                _ => prop_assert_eq!(raw & 7, 0),
            }
        }
    }

    #[test]
    fn a_write_only_word_is_malformed() {
        let level = Level::PT;
        let raw = Entry::Leaf(Leaf::own(FrameNo::new(1), Prot::Rw)).encode(level);
        assert!(Entry::decode(raw & !READ, level).is_err());
    }
}
