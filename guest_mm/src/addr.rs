//! Addresses and indices, each a type of its own, checked where it is made.

mod range;

use std::fmt;

use crate::geometry::{FRAME_BYTES, FRAME_SHIFT, Level};

pub use range::{GfnRange, GpaRange, RangeError};

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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_are_those_of_the_format() {
        assert_eq!(PageSize::ALL.map(PageSize::bytes), [4 << 10, 2 << 20, 1 << 30]);
        assert_eq!(FrameNo::new(513).block(), BlockNo::new(1));
        assert_eq!(FrameNo::new(513).offset_in_block(), 1);
    }
}
