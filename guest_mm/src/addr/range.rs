//! Runs of guest memory, checked where they are made.

use std::fmt;

use super::{Gfn, Gpa};
use crate::geometry::{FRAME_BYTES, FRAME_SHIFT, Level};

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

    /// It and `next`, which begins where it ends.
    pub fn joined(self, next: GfnRange) -> Option<GfnRange> {
        (self.end() == next.start)
            .then(|| GfnRange { start: self.start, frames: self.frames + next.frames })
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
}
