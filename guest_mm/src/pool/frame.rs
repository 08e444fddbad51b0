//! What is known of each frame: one word; and of each block, another.
//!
//! ```text
//!           63..55  54         53         52       51     50       49..48  47..24  23..0
//!  frame    -       -          exclusive  -        dirty  written  owner   pins    references
//!  block    -       spreading  -          orphans  dirty  -        -       pins    -
//! ```
//!
//! *Exclusive* says that one leaf maps the frame and no other will: a pin on it can be relied on. A frame comes into
//! use with the mark; who shares it takes the mark away first (`pin-vs-unexclusive`, [`crate::share`]), and
//! it never comes back to the same page. Frames of images have none.
//!
//! *Owner* says who may hand the frame out: the buddy allocator (free), a reservation (reserved), or
//! nobody, because it is in use. A reserved frame is claimed without a lock by whoever faults in its
//! block; everything else about ownership happens under the pool's lock.
//!
//! An *orphan* is a frame that nobody maps any more and a device still has pinned: nobody hands it out
//! until the device lets go. [`super::pins`] has that protocol; because of it a pin may be on a frame for
//! a moment whoever owns it, and no change of owner touches the pins.

use crate::addr::{BlockNo, FrameNo, PageSize};
use crate::sync::{Apart, AtomicU64, Ordering, zeroed_words};

pub(super) const REFS_MASK: u64 = (1 << 24) - 1;
const PINS_SHIFT: u32 = 24;
pub(super) const PINS_MASK: u64 = REFS_MASK << PINS_SHIFT;
pub(super) const ONE_PIN: u64 = 1 << PINS_SHIFT;
const OWNER_SHIFT: u32 = 48;
pub(super) const OWNER_MASK: u64 = 3 << OWNER_SHIFT;
const OWNER_RESERVATION: u64 = 1 << OWNER_SHIFT;
const OWNER_USER: u64 = 2 << OWNER_SHIFT;
pub(super) const OWNER_ORPHAN: u64 = 3 << OWNER_SHIFT;
/// The bytes of the frame may differ from zero.
const WRITTEN: u64 = 1 << 50;
/// A device has written to the frame, or to any of the block, since somebody asked.
pub(super) const DIRTY: u64 = 1 << 51;
/// The note that a device has written to all of the block is on its way to the frames.
pub(super) const SPREADING: u64 = 1 << 54;
/// Frames of the block wait for the block's last pin.
pub(super) const ORPHANS: u64 = 1 << 52;
/// One leaf maps the frame, and no other will.
pub(super) const EXCLUSIVE: u64 = 1 << 53;
/// In use, by one leaf alone.
const OWNER_USER_ALONE: u64 = OWNER_USER | EXCLUSIVE | 1;

/// Who may hand a frame out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The buddy allocator.
    Buddy,
    /// The reservation of its block.
    Reservation,
    /// It is in use.
    User,
    /// Nobody: unmapped, and free as soon as the last device lets go of it.
    Orphan,
}

/// The state of one frame at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameState {
    /// Who may hand it out.
    pub owner: Owner,
    /// Leaves that map it, and others that keep it: the scanner for duplicates, an image.
    pub refs: u32,
    /// Whether one leaf maps it and no other will.
    pub exclusive: bool,
    /// Claims that devices hold on it, those on all of its block included.
    pub pins: u32,
    /// Whether its bytes may differ from zero.
    pub written: bool,
    /// Whether a device has written to it since somebody asked.
    pub dirty: bool,
}

/// What became of a frame that lost a reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Disowned {
    /// It was the last one, and the frame is free.
    Freed,
    /// It was the last one, and a device has the frame pinned.
    Orphaned,
    /// Others have references.
    Shared,
}

/// The words of all frames of a pool, and of its blocks. All zero is: free, and its bytes are zero.
#[derive(Debug)]
pub(crate) struct FrameTable {
    frames: Apart<Box<[AtomicU64]>>,
    blocks: Box<[AtomicU64]>,
}

/// The words of all frames of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameWords<'a>(&'a [AtomicU64]);

impl<'a> FrameWords<'a> {
    /// The word of `frame`.
    #[inline]
    pub(super) fn word(self, frame: FrameNo) -> &'a AtomicU64 {
        &self.0[frame.index()]
    }
}

impl FrameTable {
    pub(crate) fn new(frames: usize) -> FrameTable {
        let blocks = frames.div_ceil(PageSize::Size2M.frames() as usize);
        FrameTable { frames: Apart::new(zeroed_words(frames)), blocks: zeroed_words(blocks) }
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// The word of `frame`.
    #[inline]
    pub(super) fn word(&self, frame: FrameNo) -> &AtomicU64 {
        &self.frames[frame.index()]
    }

    /// The word of `block`.
    #[inline]
    pub(super) fn block_word(&self, block: BlockNo) -> &AtomicU64 {
        &self.blocks[block.index()]
    }

    /// The words of the frames. Taken once for many pins: asked for at each, their address would be loaded at
    /// each.
    #[inline]
    pub(crate) fn words(&self) -> FrameWords<'_> {
        FrameWords(&self.frames)
    }

    /// The words of all frames and of all blocks.
    pub(super) fn every_word(&self) -> impl Iterator<Item = &AtomicU64> {
        self.frames.iter().chain(&self.blocks)
    }

    /// A snapshot of the state of `frame`.
    pub(crate) fn state(&self, frame: FrameNo) -> FrameState {
        // Acquire, with the release of `spread_dirty`: a note that is no longer on the block is on the frame.
        let block = self.block_word(frame.block()).load(Ordering::Acquire);
        let word = self.word(frame).load(Ordering::Relaxed);
        FrameState {
            owner: match word & OWNER_MASK {
                0 => Owner::Buddy,
                OWNER_RESERVATION => Owner::Reservation,
                OWNER_USER => Owner::User,
                _ => Owner::Orphan,
            },
            refs: (word & REFS_MASK) as u32,
            exclusive: word & EXCLUSIVE != 0,
            pins: (pins(word) + pins(block)) as u32,
            written: word & WRITTEN != 0,
            dirty: word & DIRTY != 0 || block & (DIRTY | SPREADING) != 0,
        }
    }

    /// Takes the frame from its reservation into use, with one reference; false when it is not
    /// reserved (any more).
    ///
    /// Acquire, with the release in [`FrameTable::disown`]: what the last user did to the bytes has
    /// happened before the new one clears them.
    pub(crate) fn claim(&self, frame: FrameNo) -> bool {
        self.word(frame)
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                (word & OWNER_MASK == OWNER_RESERVATION).then_some(kept(word) | OWNER_USER_ALONE)
            })
            .is_ok()
    }

    /// Takes the frame from its reservation back to the buddy allocator; false when it is in use.
    pub(crate) fn unreserve(&self, frame: FrameNo) -> bool {
        self.word(frame)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                (word & OWNER_MASK == OWNER_RESERVATION).then_some(kept(word))
            })
            .is_ok()
    }

    /// Moves a frame that the buddy allocator just gave out into a reservation.
    pub(crate) fn reserve(&self, frame: FrameNo) {
        self.own(frame, OWNER_RESERVATION);
    }

    /// Moves a frame that the buddy allocator just gave out into use, with one reference.
    pub(crate) fn take(&self, frame: FrameNo) {
        self.own(frame, OWNER_USER_ALONE);
    }

    fn own(&self, frame: FrameNo, owner: u64) {
        // An addition, because a walker that came too late may be pinning and unpinning the frame. Only the
        // holder of the pool's lock moves a frame away from the buddy allocator, so nothing else changes.
        // Acquire and release: passes on to a claim what `disown` released.
        let word = self.word(frame).fetch_add(owner, Ordering::AcqRel);
        let unused = word & (OWNER_MASK | REFS_MASK | EXCLUSIVE) == 0;
        assert!(unused, "frame {frame} was given out twice");
    }

    /// Drops a reference of a frame in use. With the last one it goes to the reservation or to the buddy
    /// allocator; or, if a device has it or its block (`block_pinned`) pinned, to nobody.
    ///
    /// # Panics
    /// If it is not in use: freeing it would hand memory to two owners.
    pub(crate) fn disown(
        &self,
        frame: FrameNo,
        to_reservation: bool,
        block_pinned: bool,
    ) -> Disowned {
        let update = |word: u64| {
            let in_use = word & OWNER_MASK == OWNER_USER && word & REFS_MASK != 0;
            assert!(in_use, "frame {frame} is not in use and cannot be freed: {word:#x}");
            if word & REFS_MASK > 1 {
                return Some(word - 1);
            }
            let waits = block_pinned || word & PINS_MASK != 0;
            Some(if waits {
                (word & !(OWNER_MASK | REFS_MASK | EXCLUSIVE)) | WRITTEN | OWNER_ORPHAN
            } else {
                (word & WRITTEN) | if to_reservation { OWNER_RESERVATION } else { 0 }
            })
        };
        // Release, with the acquire of the next owner in `claim` or `own`. Acquire, with the release in
        // `unpin`: what a device did to the bytes has happened before they are the next owner's.
        let word = self.word(frame).fetch_update(Ordering::AcqRel, Ordering::Relaxed, update);
        match word {
            Ok(word) if word & REFS_MASK > 1 => Disowned::Shared,
            Ok(word) if !block_pinned && word & PINS_MASK == 0 => Disowned::Freed,
            _ => Disowned::Orphaned,
        }
    }

    /// Adds a reference to a frame in use, which the caller has one on.
    pub(crate) fn share(&self, frame: FrameNo) {
        let word = self.word(frame).fetch_add(1, Ordering::Relaxed);
        let shareable = word & OWNER_MASK == OWNER_USER && word & EXCLUSIVE == 0;
        assert!(shareable, "frame {frame} is shared and not to be: {word:#x}");
        assert!(word & REFS_MASK != REFS_MASK, "frame {frame} has too many references");
    }

    /// Takes the mark from a frame that nobody pins. Relaxed: what comes next orders it (X6, or an image's page that is
    /// published).
    pub(crate) fn clear_exclusive(&self, frame: FrameNo) {
        self.word(frame).fetch_and(!EXCLUSIVE, Ordering::Relaxed);
    }

    /// X5: takes the mark from the frame unless it is pinned, in one exchange; whether it did. From then on every pin
    /// finds the mark gone.
    pub(crate) fn clear_exclusive_unpinned(&self, frame: FrameNo) -> bool {
        // Acquire, with the release in `unpin`: a device that has let go is done with the bytes.
        self.word(frame)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                (word & PINS_MASK == 0).then_some(word & !EXCLUSIVE)
            })
            .is_ok()
    }

    /// Whether one leaf maps the frame and no other will.
    pub(crate) fn is_exclusive(&self, frame: FrameNo) -> bool {
        self.words().is_exclusive(frame)
    }

    /// Takes an orphan that no device has pinned any more, as `disown` would have; false when it is none,
    /// or pinned.
    pub(crate) fn adopt_orphan(&self, frame: FrameNo, to_reservation: bool) -> bool {
        let owner = if to_reservation { OWNER_RESERVATION } else { 0 };
        self.word(frame)
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
                (word & (OWNER_MASK | PINS_MASK) == OWNER_ORPHAN).then_some(WRITTEN | owner)
            })
            .is_ok()
    }

    /// The bytes are zero again: the host has taken what held them, and the frame is the caller's alone. Whether they may
    /// have differed before. Relaxed: the release in `disown` follows on the same word.
    pub(crate) fn clear_written(&self, frame: FrameNo) -> bool {
        self.word(frame).fetch_and(!WRITTEN, Ordering::Relaxed) & WRITTEN != 0
    }

    /// Whether the bytes may differ from zero; they are taken to from now on.
    pub(crate) fn set_written(&self, frame: FrameNo) -> bool {
        self.word(frame).fetch_or(WRITTEN, Ordering::Relaxed) & WRITTEN != 0
    }
}

/// What a frame keeps when it changes hands before anyone has used it.
fn kept(word: u64) -> u64 {
    word & (WRITTEN | PINS_MASK)
}

/// How often a word is pinned.
pub(super) fn pins(word: u64) -> u64 {
    (word & PINS_MASK) >> PINS_SHIFT
}
