//! Devices' claims on frames.
//!
//! ```text
//! pin-vs-reuse            pinner                          unmap (holds the table's lock)
//!                         P1 walk to a leaf (guard)       U1 clear the leaf
//!                         P2 pin its frame                U2 zap the window
//!                         P3 full barrier                 U3 full barrier
//!                         P4 leaf unchanged? else P7      U4 pinned? then it is an orphan, else free
//!                         P5 (`pin-vs-collapse`)
//!                         P7 unpin; an orphan's last
//!                            pin frees it
//!
//! Invariant   a frame that a device may use is handed to nobody else: either U4 sees the pin of P2, or P4
//!             sees what U1 did.
//! Tolerated   a pin of P2 on a frame that is free or another's by now. P4 takes it back, its holder never
//!             touches the bytes, and if the frame is unmapped meanwhile it waits a moment as an orphan.
//! Origin      Linux 2667f50e8b81: a lockless walk takes its reference first and then looks at the entry
//!             again. There the reference keeps the page; here the orphan does.
//! ```
//!
//! A pin through a 4 KiB leaf is on its frame's word; one through a larger leaf is on the words of its
//! blocks, one atomic for 512 frames, and stays there when the leaf is split. So a frame is pinned when
//! its own word says so or its block's does.

use crate::addr::{BlockNo, FrameNo};
use crate::sync::Ordering;

use super::frame::{
    DIRTY, EXCLUSIVE, FrameTable, FrameWords, ONE_PIN, ORPHANS, OWNER_MASK, OWNER_ORPHAN,
    PINS_MASK, SPREADING, pins,
};

/// What a frame's word said when it was pinned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before(u64);

impl Before {
    /// Whether the frame was dirty already, which it then stays for as long as it is pinned.
    #[inline]
    pub(crate) fn dirty(self) -> Dirty {
        if self.0 & DIRTY == 0 { Dirty::NotYet } else { Dirty::Already }
    }

    /// Whether it was marked exclusive then.
    #[inline]
    pub(crate) fn is_exclusive(self) -> bool {
        self.0 & EXCLUSIVE != 0
    }
}

/// Whether a device has written to a frame since somebody asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dirty {
    /// Not that anybody knows.
    NotYet,
    /// It has.
    Already,
}

impl FrameWords<'_> {
    /// P2. Relaxed, because the barrier of P3 orders it.
    #[inline]
    pub(crate) fn pin(self, frame: FrameNo) -> Before {
        let word = self.word(frame).fetch_add(ONE_PIN, Ordering::Relaxed);
        assert!(word & PINS_MASK != PINS_MASK, "frame {frame} has too many pins");
        Before(word)
    }

    /// P6: whether the frame is marked exclusive. Relaxed: P4 orders it behind the look at the entry.
    #[inline]
    pub(crate) fn is_exclusive(self, frame: FrameNo) -> bool {
        self.word(frame).load(Ordering::Relaxed) & EXCLUSIVE != 0
    }

    /// P7; whether it was the last pin of an orphan, which the caller then has to free.
    ///
    /// Release, with the acquire in `disown` and `adopt_orphan`: the device is done with the bytes.
    #[inline]
    pub(crate) fn unpin(self, frame: FrameNo) -> bool {
        let word = self.word(frame).fetch_sub(ONE_PIN, Ordering::Release);
        debug_assert!(word & PINS_MASK != 0, "frame {frame} was not pinned");
        word & (OWNER_MASK | PINS_MASK) == OWNER_ORPHAN | ONE_PIN
    }

    /// A device has written to the frame, and its pin on the frame is about to go.
    #[inline]
    pub(crate) fn set_dirty(self, frame: FrameNo) {
        // Relaxed: the release of `unpin` follows on the same word.
        self.word(frame).fetch_or(DIRTY, Ordering::Relaxed);
    }
}

impl FrameTable {
    /// P2, for all frames of a block.
    #[inline]
    pub(crate) fn pin_block(&self, block: BlockNo) {
        let word = self.block_word(block).fetch_add(ONE_PIN, Ordering::Relaxed);
        assert!(word & PINS_MASK != PINS_MASK, "block {block:?} has too many pins");
    }

    /// P7, for all frames of a block; whether some of them wait for this.
    #[inline]
    pub(crate) fn unpin_block(&self, block: BlockNo) -> bool {
        let word = self.block_word(block).fetch_sub(ONE_PIN, Ordering::Release);
        debug_assert!(word & PINS_MASK != 0, "block {block:?} was not pinned");
        word & (ORPHANS | PINS_MASK) == ORPHANS | ONE_PIN
    }

    /// A device has written to the frame, and its pin on the block is about to go.
    ///
    /// Release, with the acquire in `take_dirty`: the pin is on another word, so this has to bring the
    /// bytes along by itself, and a look would not.
    pub(crate) fn set_dirty_in_block(&self, frame: FrameNo) {
        self.word(frame).fetch_or(DIRTY, Ordering::Release);
    }

    /// A device has written to all of the block, and its pin on the block is about to go.
    #[inline]
    pub(crate) fn set_block_dirty(&self, block: BlockNo) {
        let word = self.block_word(block);
        if word.load(Ordering::Relaxed) & DIRTY == 0 {
            word.fetch_or(DIRTY, Ordering::Relaxed);
        }
    }

    /// Whether a device has the frame pinned. Exact for a frame whose leaf is out of every walker's reach,
    /// after a full barrier.
    pub(crate) fn is_pinned(&self, frame: FrameNo) -> bool {
        // Acquire, with the release in `unpin`: a device that has let go is done with the bytes.
        let word = self.word(frame).load(Ordering::Acquire);
        word & PINS_MASK != 0 || self.is_block_pinned(frame.block())
    }

    /// Whether a device has all of the block pinned; exact as [`FrameTable::is_pinned`] is.
    pub(crate) fn is_block_pinned(&self, block: BlockNo) -> bool {
        self.block_word(block).load(Ordering::Acquire) & PINS_MASK != 0
    }

    /// Notes that frames of the block wait for its last pin; false when that has gone already.
    pub(crate) fn await_block(&self, block: BlockNo) -> bool {
        self.block_word(block).fetch_or(ORPHANS, Ordering::AcqRel) & PINS_MASK != 0
    }

    /// Takes that note back, if no pin is left.
    pub(crate) fn stop_awaiting_block(&self, block: BlockNo) -> bool {
        self.block_word(block)
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
                (word & PINS_MASK == 0).then_some(word & !ORPHANS)
            })
            .is_ok()
    }

    /// Whether a device has written to all of the block, and the frames do not know yet.
    pub(crate) fn is_block_dirty(&self, block: BlockNo) -> bool {
        self.block_word(block).load(Ordering::Relaxed) & DIRTY != 0
    }

    /// Moves the note that a whole block is dirty to its `frames`. One at a time: the pool's lock is held.
    pub(crate) fn spread_dirty(&self, block: BlockNo, frames: impl Iterator<Item = FrameNo>) {
        let word = self.block_word(block);
        // One exchange: who looks at a frame meanwhile finds that its note may be on the way. What a device adds from now
        // on is a note of its own.
        let taken = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
            (word & DIRTY != 0).then_some(word & !DIRTY | SPREADING)
        });
        if taken.is_ok() {
            frames.for_each(|frame| self.set_dirty_in_block(frame));
            // Release, with the acquire of who looks at the word and then at a frame's.
            word.fetch_and(!SPREADING, Ordering::Release);
        }
    }

    /// Whether the frame is dirty; it is not any more, unless a device still has it pinned and may be
    /// writing.
    pub(crate) fn take_dirty(&self, frame: FrameNo) -> bool {
        let block_pinned = self.is_block_pinned(frame.block());
        let update = |word: u64| {
            let settled = word & PINS_MASK == 0 && !block_pinned;
            (word & DIRTY != 0 && settled).then_some(word & !DIRTY)
        };
        // Acquire, with the release in `unpin`: what the device wrote is read by who copies the page now.
        let result = self.word(frame).fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
        result.unwrap_or_else(|word| word) & DIRTY != 0
    }

    /// Pins on all frames and blocks together, for audits.
    pub(crate) fn nr_pins(&self) -> u64 {
        self.every_word().map(|word| pins(word.load(Ordering::Relaxed))).sum()
    }
}
