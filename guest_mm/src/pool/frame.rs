//! What is known of each frame: one word.
//!
//! ```text
//!  63..50  49..48  47..24  23..0
//!  flags   owner   pins    references
//! ```
//!
//! *Owner* says who may hand the frame out: the buddy allocator (free), a reservation (reserved), or
//! nobody, because it is in use. A reserved frame is claimed without a lock by whoever faults in its
//! block; everything else about ownership happens under the pool's lock.

use crate::addr::FrameNo;
use crate::sync::{AtomicU64, Ordering, zeroed_words};

const REFS_MASK: u64 = (1 << 24) - 1;
const PINS_SHIFT: u32 = 24;
const PINS_MASK: u64 = REFS_MASK << PINS_SHIFT;
const OWNER_SHIFT: u32 = 48;
const OWNER_MASK: u64 = 3 << OWNER_SHIFT;
const OWNER_RESERVATION: u64 = 1 << OWNER_SHIFT;
const OWNER_USER: u64 = 2 << OWNER_SHIFT;
/// The bytes of the frame may differ from zero.
const WRITTEN: u64 = 1 << 50;

/// Who may hand a frame out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The buddy allocator.
    Buddy,
    /// The reservation of its block.
    Reservation,
    /// It is in use.
    User,
}

/// The state of one frame at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameState {
    /// Who may hand it out.
    pub owner: Owner,
    /// Leaves that map it.
    pub refs: u32,
    /// Claims that devices hold on it.
    pub pins: u32,
    /// Whether its bytes may differ from zero.
    pub written: bool,
}

/// The words of all frames of a pool. All zero is: free, and its bytes are zero.
#[derive(Debug)]
pub(crate) struct FrameTable {
    words: Box<[AtomicU64]>,
}

impl FrameTable {
    pub(crate) fn new(frames: usize) -> FrameTable {
        FrameTable { words: zeroed_words(frames) }
    }

    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    fn word(&self, frame: FrameNo) -> &AtomicU64 {
        &self.words[frame.index()]
    }

    /// A snapshot of the state of `frame`.
    pub(crate) fn state(&self, frame: FrameNo) -> FrameState {
        let word = self.word(frame).load(Ordering::Relaxed);
        FrameState {
            owner: match word & OWNER_MASK {
                0 => Owner::Buddy,
                OWNER_RESERVATION => Owner::Reservation,
                _ => Owner::User,
            },
            refs: (word & REFS_MASK) as u32,
            pins: ((word & PINS_MASK) >> PINS_SHIFT) as u32,
            written: word & WRITTEN != 0,
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
                (word & OWNER_MASK == OWNER_RESERVATION)
                    .then_some((word & WRITTEN) | OWNER_USER | 1)
            })
            .is_ok()
    }

    /// Takes the frame from its reservation back to the buddy allocator; false when it is in use.
    pub(crate) fn unreserve(&self, frame: FrameNo) -> bool {
        self.word(frame)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                (word & OWNER_MASK == OWNER_RESERVATION).then_some(word & WRITTEN)
            })
            .is_ok()
    }

    /// Moves a frame that the buddy allocator just gave out into a reservation.
    pub(crate) fn reserve(&self, frame: FrameNo) {
        self.own(frame, OWNER_RESERVATION);
    }

    /// Moves a frame that the buddy allocator just gave out into use, with one reference.
    pub(crate) fn take(&self, frame: FrameNo) {
        self.own(frame, OWNER_USER | 1);
    }

    fn own(&self, frame: FrameNo, owner: u64) {
        // Only the holder of the pool's lock moves a frame away from the buddy allocator.
        let word = self.word(frame).load(Ordering::Acquire);
        assert!(word & !WRITTEN == 0, "frame {frame} was given out twice");
        // Release, passing on to a claim what `disown` released: the store ends its release sequence.
        self.word(frame).store((word & WRITTEN) | owner, Ordering::Release);
    }

    /// Drops the last reference of a frame in use; it goes to the reservation or to the buddy allocator.
    ///
    /// # Panics
    /// If it is pinned, shared, or not in use: freeing it would hand memory to two owners.
    pub(crate) fn disown(&self, frame: FrameNo, to_reservation: bool) {
        let owner = if to_reservation { OWNER_RESERVATION } else { 0 };
        let word = self.word(frame).load(Ordering::Relaxed);
        assert!(
            word & (OWNER_MASK | PINS_MASK | REFS_MASK) == OWNER_USER | 1,
            "frame {frame} is not in use by exactly one: {word:#x}"
        );
        // Release, with the acquire of the next owner in `claim` or `own`.
        self.word(frame).store(WRITTEN | owner, Ordering::Release);
    }

    /// Whether the bytes may differ from zero; they are taken to from now on.
    pub(crate) fn set_written(&self, frame: FrameNo) -> bool {
        self.word(frame).fetch_or(WRITTEN, Ordering::Relaxed) & WRITTEN != 0
    }
}
