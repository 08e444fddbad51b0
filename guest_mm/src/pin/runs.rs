//! What a pin holds: runs of frames, and on which words their pins are.

use std::num::NonZeroU64;

use crate::addr::{FrameNo, PageSize};
use crate::geometry::FRAME_BYTES;
use crate::pool::{Dirty, FrameWords, Pool};
use crate::prot::Access;

/// Frames of one block.
const BLOCK: u64 = PageSize::Size2M.frames();

/// Frames in order, pinned on words of one kind: the first in bits 31:0, bit 32 says that the pins are on the
/// blocks' words, bit 33 that the frames were all dirty before, bits 63:34 are how many. One word, so that a
/// pin goes from hand to hand in a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PinRun(NonZeroU64);

/// Which words the pins of a run are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Each frame's own.
    Frames = 0,
    /// Those of the blocks that it touches.
    Blocks = 1,
}

/// A range's runs while they are pinned, in the order of guest addresses.
pub(super) struct Runs<'m> {
    pub(super) first: Option<PinRun>,
    pub(super) more: &'m mut Vec<PinRun>,
    /// How many of `more` are another range's.
    pub(super) others: usize,
}

impl PinRun {
    /// A run of at least one frame.
    #[inline]
    pub(super) fn new(first: FrameNo, frames: u64, kind: Kind, dirty: Dirty) -> PinRun {
        let dirty = u64::from(dirty == Dirty::Already);
        let word = frames << 34 | dirty << 33 | (kind as u64) << 32 | first.index() as u64;
        PinRun(NonZeroU64::new(word).expect("a run is not empty"))
    }

    #[inline]
    fn first(self) -> FrameNo {
        FrameNo::new(self.0.get() as u32)
    }

    #[inline]
    pub(super) fn frames(self) -> u64 {
        self.0.get() >> 34
    }

    #[inline]
    fn dirty(self) -> Dirty {
        if self.0.get() & 1 << 33 == 0 { Dirty::NotYet } else { Dirty::Already }
    }

    #[inline]
    fn kind(self) -> Kind {
        if self.0.get() & 1 << 32 == 0 { Kind::Frames } else { Kind::Blocks }
    }

    fn end(self) -> FrameNo {
        self.first().add(self.frames())
    }

    /// Whether `next` lies behind this run and its pins are on words of the same kind.
    fn continues_in(self, next: PinRun) -> bool {
        self.kind() == next.kind()
            && self.end() == next.first()
            // Two parts of one block are two pins on its word.
            && (next.kind() == Kind::Frames || next.first().offset_in_block() == 0)
    }

    /// P7; `access` is what the device was allowed.
    #[inline]
    pub(super) fn unpin(self, pool: &Pool, access: Access) {
        self.unpin_by(pool, pool.frames().words(), access);
    }

    /// As [`PinRun::unpin`], for who has the words at hand.
    #[inline]
    pub(super) fn unpin_by(self, pool: &Pool, words: FrameWords<'_>, access: Access) {
        if self.kind() == Kind::Frames && self.frames() == 1 {
            unpin_frame(pool, words, self.first(), access, self.dirty());
        } else {
            self.unpin_many(pool, access);
        }
    }

    fn unpin_many(self, pool: &Pool, access: Access) {
        match self.kind() {
            Kind::Frames => {
                let words = pool.frames().words();
                let frames = (0..self.frames()).map(|i| self.first().add(i));
                frames.for_each(|frame| unpin_frame(pool, words, frame, access, self.dirty()));
            }
            Kind::Blocks => self.unpin_blocks(pool, access),
        }
    }

    fn unpin_blocks(self, pool: &Pool, access: Access) {
        let mut next = self.first();
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

#[inline]
fn unpin_frame(pool: &Pool, words: FrameWords<'_>, frame: FrameNo, access: Access, dirty: Dirty) {
    // Said before the pin goes: from then on a collapse may copy the page, and the note with it.
    if access == Access::Write && dirty == Dirty::NotYet {
        words.set_dirty(frame);
    }
    if words.unpin(frame) {
        pool.reap(frame);
    }
}

impl Runs<'_> {
    /// Adds `run`, to the last one if it continues that; how many frames it has.
    pub(super) fn push(&mut self, run: PinRun) -> u64 {
        let last = match self.more.get_mut(self.others..).and_then(<[PinRun]>::last_mut) {
            Some(last) => Some(last),
            None => self.first.as_mut(),
        };
        match last {
            Some(last) if last.continues_in(run) => {
                let dirty = if last.dirty() == run.dirty() { run.dirty() } else { Dirty::NotYet };
                let frames = last.frames() + run.frames();
                *last = PinRun::new(last.first(), frames, run.kind(), dirty);
            }
            Some(_) => self.more.push(run),
            None => self.first = Some(run),
        }
        run.frames()
    }
}

/// The bytes of the runs `first` and `more`, `bytes` from `offset` of the first on, as pieces of the pool:
/// the frame where each starts, the offset in it, and how long it is. As few as the frames allow.
pub(super) fn pieces(
    first: PinRun,
    more: impl Iterator<Item = PinRun>,
    offset: u64,
    bytes: u64,
) -> impl Iterator<Item = (FrameNo, u64, u64)> {
    let mut runs = std::iter::once(first).chain(more).peekable();
    let (mut skip, mut left) = (offset, bytes);
    std::iter::from_fn(move || {
        let run = runs.next()?;
        let mut frames = run.frames();
        while let Some(next) = runs.peek()
            && next.first() == run.first().add(frames)
        {
            frames += next.frames();
            runs.next();
        }
        let length = (frames * FRAME_BYTES - skip).min(left);
        let piece = (run.first(), skip, length);
        (skip, left) = (0, left - length);
        Some(piece)
    })
}
