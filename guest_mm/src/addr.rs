//! Addresses and indices, each a type of its own, checked where it is made.

use std::fmt;

use crate::geometry::{FRAME_BYTES, FRAME_SHIFT, Level};

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(u64);

/// A guest frame number: a guest-physical address in units of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(u64);

/// An address in this process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hva(u64);

/// A 4 KiB slot of the pool: an index, not a host page frame number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameNo(u32);

/// A 2 MiB-aligned run of frames of the pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockNo(u32);

/// What one leaf maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageSize {
    /// 4 KiB, a leaf of level 1.
    Size4K,
    /// 2 MiB, a leaf of level 2.
    Size2M,
    /// 1 GiB, a leaf of level 3.
    Size1G,
}

impl PageSize {
    /// Every size, smallest first.
    pub const ALL: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

    /// The number of the level whose leaves have this size.
    pub const fn level_number(self) -> u8 {
        match self {
            PageSize::Size4K => 1,
            PageSize::Size2M => 2,
            PageSize::Size1G => 3,
        }
    }

    /// The level whose leaves have this size, if the tree has it.
    pub const fn level(self) -> Option<Level> {
        let number = self.level_number();
        if number <= crate::geometry::LEVELS { Some(Level::new(number)) } else { None }
    }

    /// The size of a leaf of `level`, or none where the format has no leaves.
    pub const fn of_level(level: Level) -> Option<PageSize> {
        match level.number() {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 => Some(PageSize::Size1G),
            _ => None,
        }
    }

    /// Frames in it.
    pub const fn frames(self) -> u64 {
        1 << (crate::geometry::FANOUT_BITS * (self.level_number() as u32 - 1))
    }

    /// Bytes in it.
    pub const fn bytes(self) -> u64 {
        self.frames() * FRAME_BYTES
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageSize::Size4K => "4 KiB",
            PageSize::Size2M => "2 MiB",
            PageSize::Size1G => "1 GiB",
        })
    }
}

impl Gpa {
    /// The address `bytes`.
    pub const fn new(bytes: u64) -> Gpa {
        Gpa(bytes)
    }

    /// In bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The frame that holds it.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> FRAME_SHIFT)
    }

    /// Its offset in its frame, in bytes.
    pub const fn frame_offset(self) -> usize {
        (self.0 & (FRAME_BYTES - 1)) as usize
    }

    /// This address plus `bytes`, or none past the end of the address space.
    pub const fn checked_add(self, bytes: u64) -> Option<Gpa> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Gpa(sum)),
            None => None,
        }
    }
}

impl Gfn {
    /// The guest frame `number`.
    ///
    /// # Panics
    /// If its address would not fit 64 bits.
    pub const fn new(number: u64) -> Gfn {
        assert!(number >> (64 - FRAME_SHIFT) == 0, "guest frame number out of range");
        Gfn(number)
    }

    /// As a number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Its first byte.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << FRAME_SHIFT)
    }

    /// The frame `frames` further on.
    ///
    /// # Panics
    /// If that is out of range.
    pub const fn add(self, frames: u64) -> Gfn {
        match self.0.checked_add(frames) {
            Some(sum) => Gfn::new(sum),
            None => panic!("guest frame number out of range"),
        }
    }

    /// The first frame of the naturally aligned run of `frames` (a power of two) that holds it.
    pub const fn align_down(self, frames: u64) -> Gfn {
        assert!(frames.is_power_of_two());
        Gfn(self.0 & !(frames - 1))
    }

    /// Its offset in that run, in frames.
    pub const fn offset_in(self, frames: u64) -> u64 {
        assert!(frames.is_power_of_two());
        self.0 & (frames - 1)
    }
}

impl Hva {
    /// The address `bytes`.
    pub const fn new(bytes: u64) -> Hva {
        Hva(bytes)
    }

    /// In bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on.
    ///
    /// # Panics
    /// If that is out of range.
    pub const fn add(self, bytes: u64) -> Hva {
        match self.0.checked_add(bytes) {
            Some(sum) => Hva(sum),
            None => panic!("host address out of range"),
        }
    }
}

impl FrameNo {
    /// The frame with this index.
    pub const fn new(index: u32) -> FrameNo {
        FrameNo(index)
    }

    /// Its index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its offset in the pool, in bytes.
    pub const fn offset(self) -> u64 {
        (self.0 as u64) << FRAME_SHIFT
    }

    /// The frame `frames` further on.
    ///
    /// # Panics
    /// If there can be no such frame.
    pub const fn add(self, frames: u64) -> FrameNo {
        assert!(frames <= (u32::MAX - self.0) as u64, "frame number out of range");
        FrameNo(self.0 + frames as u32)
    }

    /// The block that holds it.
    pub const fn block(self) -> BlockNo {
        BlockNo(self.0 / PageSize::Size2M.frames() as u32)
    }

    /// Its place in its block, in frames.
    pub const fn offset_in_block(self) -> u64 {
        self.0 as u64 % PageSize::Size2M.frames()
    }
}

impl BlockNo {
    /// The block with this index.
    pub const fn new(index: u32) -> BlockNo {
        BlockNo(index)
    }

    /// Its index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its first frame.
    pub const fn first(self) -> FrameNo {
        FrameNo(self.0 * PageSize::Size2M.frames() as u32)
    }
}

/// A run of guest frames, valid by construction: not empty, and its end can be addressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GfnRange {
    start: Gfn,
    frames: u64,
}

/// Bytes of guest-physical memory, as a device names them: not empty, and inside of what the tables map.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GpaRange {
    start: Gpa,
    bytes: u64,
}

impl GpaRange {
    /// The `bytes` from `start` on.
    ///
    /// # Errors
    /// [`RangeError::Empty`], or [`RangeError::TooHigh`] past what the tables can map.
    #[inline]
    pub const fn new(start: Gpa, bytes: u64) -> Result<GpaRange, RangeError> {
        if bytes == 0 {
            return Err(RangeError::Empty(start.0));
        }
        match start.0.checked_add(bytes) {
            Some(end) if end <= crate::geometry::TREE_FRAMES << FRAME_SHIFT => {
                Ok(GpaRange { start, bytes })
            }
            _ => Err(RangeError::TooHigh(start.0, bytes)),
        }
    }

    /// Its first byte.
    pub const fn start(self) -> Gpa {
        self.start
    }

    /// How many bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// The frames that hold it.
    #[inline]
    pub const fn frames(self) -> GfnRange {
        let (start, last) = (self.start.gfn(), Gpa(self.start.0 + self.bytes - 1).gfn());
        GfnRange { start, frames: last.0 - start.0 + 1 }
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.start.0, self.bytes)
    }
}

impl fmt::Debug for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpaRange({self})")
    }
}

impl From<GfnRange> for GpaRange {
    fn from(range: GfnRange) -> GpaRange {
        GpaRange { start: range.start.gpa(), bytes: range.bytes() }
    }
}

/// Why a range was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RangeError {
    /// It would hold nothing.
    #[error("the guest-physical range at {0:#x} is empty")]
    Empty(u64),
    /// Its start or its length is not a multiple of 4 KiB.
    #[error("the guest-physical range {0:#x}+{1:#x} is not aligned to 4 KiB")]
    Unaligned(u64, u64),
    /// It does not fit the address space of the tables.
    #[error("the guest-physical range {0:#x}+{1:#x} ends past what the tables can map")]
    TooHigh(u64, u64),
}

impl GfnRange {
    /// The `frames` from `start` on.
    ///
    /// # Errors
    /// [`RangeError::Empty`], or [`RangeError::TooHigh`] past what the tables can map.
    pub const fn new(start: Gfn, frames: u64) -> Result<GfnRange, RangeError> {
        let bytes = frames.saturating_mul(FRAME_BYTES);
        if frames == 0 {
            return Err(RangeError::Empty(start.gpa().as_u64()));
        }
        match start.0.checked_add(frames) {
            Some(end) if end <= crate::geometry::TREE_FRAMES => Ok(GfnRange { start, frames }),
            _ => Err(RangeError::TooHigh(start.gpa().as_u64(), bytes)),
        }
    }

    /// The range of `bytes` from `gpa` on; both are multiples of 4 KiB.
    ///
    /// # Errors
    /// As [`GfnRange::new`], and [`RangeError::Unaligned`].
    pub const fn from_bytes(gpa: Gpa, bytes: u64) -> Result<GfnRange, RangeError> {
        if !gpa.0.is_multiple_of(FRAME_BYTES) || !bytes.is_multiple_of(FRAME_BYTES) {
            return Err(RangeError::Unaligned(gpa.0, bytes));
        }
        GfnRange::new(gpa.gfn(), bytes / FRAME_BYTES)
    }

    /// What one entry of a table of `level` spans, around `gfn`.
    pub const fn entry(gfn: Gfn, level: Level) -> GfnRange {
        let frames = level.entry_frames();
        GfnRange { start: gfn.align_down(frames), frames }
    }

    /// Its first frame.
    pub const fn start(self) -> Gfn {
        self.start
    }

    /// The frame behind its last.
    pub const fn end(self) -> Gfn {
        Gfn(self.start.0 + self.frames)
    }

    /// How many frames.
    pub const fn frames(self) -> u64 {
        self.frames
    }

    /// How many bytes.
    pub const fn bytes(self) -> u64 {
        self.frames * FRAME_BYTES
    }

    /// Whether it holds `gfn`.
    pub const fn contains(self, gfn: Gfn) -> bool {
        self.start.0 <= gfn.0 && gfn.0 < self.end().0
    }

    /// Whether it holds all of `other`.
    pub const fn covers(self, other: GfnRange) -> bool {
        self.start.0 <= other.start.0 && other.end().0 <= self.end().0
    }

    /// What it shares with `other`.
    pub fn intersection(self, other: GfnRange) -> Option<GfnRange> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| GfnRange { start, frames: end.0 - start.0 })
    }

    /// It, cut at every multiple of `frames` (a power of two): in order, without gaps.
    pub fn chunks(self, frames: u64) -> impl Iterator<Item = GfnRange> {
        let mut next = self.start;
        std::iter::from_fn(move || {
            if next >= self.end() {
                return None;
            }
            let end = next.align_down(frames).0.saturating_add(frames).min(self.end().0);
            let chunk = GfnRange { start: next, frames: end - next.0 };
            next = Gfn(end);
            Some(chunk)
        })
    }

    /// Its frames, in order.
    pub fn iter(self) -> impl Iterator<Item = Gfn> {
        (self.start.0..self.end().0).map(Gfn)
    }
}

macro_rules! hex_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )*};
}
hex_debug!(Gpa, Gfn, Hva, FrameNo, BlockNo);

impl fmt::Debug for GfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GfnRange({self})")
    }
}

impl fmt::Display for GfnRange {
    /// As guest-physical addresses, the end exclusive.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.gpa().0, self.start.gpa().0 + self.bytes())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_not_empty_and_stays_inside_the_tree() {
        assert_eq!(GfnRange::new(Gfn::new(4), 0), Err(RangeError::Empty(0x4000)));
        assert!(GfnRange::new(Gfn::new(crate::geometry::TREE_FRAMES - 1), 1).is_ok());
        assert!(GfnRange::new(Gfn::new(crate::geometry::TREE_FRAMES - 1), 2).is_err());
        assert!(GfnRange::from_bytes(Gpa::new(0x1001), 0x1000).is_err());
        assert!(GfnRange::from_bytes(Gpa::new(0x1000), !0xfff).is_err());
    }

    #[test]
    fn chunks_cut_at_block_borders_and_lose_nothing() {
        let range = GfnRange::new(Gfn::new(500), 1100).unwrap();
        let chunks: Vec<_> = range.chunks(512).map(|c| (c.start().as_u64(), c.frames())).collect();
        assert_eq!(chunks, [(500, 12), (512, 512), (1024, 512), (1536, 64)]);
    }

    #[test]
    fn the_sizes_are_those_of_the_format() {
        assert_eq!(PageSize::ALL.map(PageSize::bytes), [4 << 10, 2 << 20, 1 << 30]);
        assert_eq!(FrameNo::new(513).block(), BlockNo::new(1));
        assert_eq!(FrameNo::new(513).offset_in_block(), 1);
    }
}
