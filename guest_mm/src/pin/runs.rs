//! What a pin holds: runs of frames, and on which words their pins are.

use smallvec::SmallVec;

use crate::addr::{FrameNo, PageSize};
use crate::geometry::FRAME_BYTES;
use crate::pool::Pool;
use crate::prot::Access;

/// Runs that need no allocation.
const INLINE: usize = 4;

/// Frames of one block.
const BLOCK: u64 = PageSize::Size2M.frames();

/// Frames in order, pinned on words of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PinRun {
    first: FrameNo,
    /// How many, times two; the lowest bit says that the pins are on the blocks' words.
    frames_and_kind: u32,
}

/// Which words the pins of a run are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Each frame's own.
    Frames = 0,
    /// Those of the blocks that it touches.
    Blocks = 1,
}

/// Pinned runs, in the order of guest addresses.
#[derive(Debug, Default)]
pub(super) struct Runs(SmallVec<[PinRun; INLINE]>);

impl PinRun {
    #[inline]
    fn new(first: FrameNo, frames: u64, kind: Kind) -> PinRun {
        // A run is at most a pool of 2^31 frames, 8 TiB.
        PinRun { first, frames_and_kind: (frames as u32) << 1 | kind as u32 }
    }

    #[inline]
    fn frames(self) -> u64 {
        (self.frames_and_kind >> 1).into()
    }

    #[inline]
    fn kind(self) -> Kind {
        if self.frames_and_kind & 1 == 0 { Kind::Frames } else { Kind::Blocks }
    }

    #[inline]
    fn end(self) -> FrameNo {
        self.first.add(self.frames())
    }

    /// P6; `access` is what the device was allowed.
    #[inline]
    fn unpin(self, pool: &Pool, access: Access) {
        match self.kind() {
            Kind::Frames => {
                for i in 0..self.frames() {
                    let frame = self.first.add(i);
                    if access == Access::Write {
                        pool.frames().set_dirty(frame);
                    }
                    pool.unpin(frame);
                }
            }
            Kind::Blocks => self.unpin_blocks(pool, access),
        }
    }

    fn unpin_blocks(self, pool: &Pool, access: Access) {
        let mut next = self.first;
        while next < self.end() {
            let block = next.block();
            let left = (self.end().index() - next.index()) as u64;
            let part = (BLOCK - next.offset_in_block()).min(left);
            match access {
                Access::Read => {}
                Access::Write if part == BLOCK => pool.frames().set_block_dirty(block),
                Access::Write => {
                    (0..part).for_each(|i| pool.frames().set_dirty_in_block(next.add(i)));
                }
            }
            pool.unpin_block(block);
            next = next.add(part);
        }
    }
}

impl Runs {
    /// Room for `runs` without another allocation.
    pub(super) fn reserve(&mut self, runs: usize) {
        self.0.reserve(runs.saturating_sub(self.0.len()));
    }

    /// How many runs there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds `frames` from `first` on; to the last run, if that one is `open` and they continue it.
    #[inline]
    pub(super) fn push(&mut self, first: FrameNo, frames: u64, kind: Kind, open: usize) {
        if self.0.len() > open
            && let Some(last) = self.0.last_mut()
            && last.kind() == kind
            && last.end() == first
            // Two halves of one block are two pins on its word.
            && (kind == Kind::Frames || first.offset_in_block() == 0)
        {
            *last = PinRun::new(last.first, last.frames() + frames, kind);
        } else {
            self.0.push(PinRun::new(first, frames, kind));
        }
    }

    /// Unpins the runs of `range`, which stay in the list.
    #[inline]
    pub(super) fn unpin(&self, range: std::ops::Range<usize>, pool: &Pool, access: Access) {
        for run in &self.0[range] {
            run.unpin(pool, access);
        }
    }

    /// Forgets the runs from `len` on, which are unpinned, and keeps the room.
    #[inline]
    pub(super) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// The bytes of the runs of `range`, `bytes` from `offset` of the first on, as pieces of the pool:
    /// where they start and how long they are. As few as the frames allow.
    pub(super) fn pieces(
        &self,
        range: std::ops::Range<usize>,
        offset: u64,
        bytes: u64,
    ) -> impl Iterator<Item = (FrameNo, u64, u64)> {
        let mut runs = self.0[range].iter().copied().peekable();
        let (mut skip, mut left) = (offset, bytes);
        std::iter::from_fn(move || {
            let run = runs.next()?;
            let mut frames = run.frames();
            while let Some(next) = runs.peek()
                && next.first == run.first.add(frames)
            {
                frames += next.frames();
                runs.next();
            }
            let length = (frames * FRAME_BYTES - skip).min(left);
            let piece = (run.first, skip, length);
            (skip, left) = (0, left - length);
            Some(piece)
        })
    }
}
