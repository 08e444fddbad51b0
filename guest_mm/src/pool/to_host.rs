//! Memory that goes back to the host, and may be missed when it is needed again.
//!
//! A frame whose bytes the host has taken is as one that was never used: it is zero, and is populated, not cleared, when it
//! is next handed out. So its *written* mark goes with its bytes, while it is still the caller's alone: nobody else can be
//! given the frame in between.
//!
//! The host frees what it can. In a huge folio it splits the folio first; where it cannot, the bytes are zero all the same
//! and the memory stays.

use std::iter::Sum;

use crate::addr::{BlockNo, FrameNo, PageSize};
use crate::geometry::FRAME_BYTES;
use crate::sync::{Ordering, full_fence};

use super::{Pool, Reservation};

/// What became of frames that were meant for the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ToHost {
    /// Frames whose memory went back, those that had been used.
    pub(crate) returned: u64,
    /// Frames that a device had pinned: they are free when it lets go, and their memory stays with the pool.
    pub(crate) pinned: u64,
    /// Frames that others use too: they stay with them.
    pub(crate) shared: u64,
}

impl Sum for ToHost {
    fn sum<I: Iterator<Item = ToHost>>(all: I) -> ToHost {
        all.fold(ToHost::default(), |one, other| ToHost {
            returned: one.returned + other.returned,
            pinned: one.pinned + other.pinned,
            shared: one.shared + other.shared,
        })
    }
}

impl Pool {
    /// As [`Pool::release`], and the memory of those that are free goes back to the host.
    pub(crate) fn release_to_host(&self, first: FrameNo, frames: u64) -> ToHost {
        // U3: with the release's own look at the pins to follow, this one is U4 of those that go to the host.
        full_fence();
        let mut to_host = ToHost::default();
        // Where the run begins that is nobody else's.
        let mut alone = None;
        for i in 0..=frames {
            let frame = first.add(i);
            let fit = i < frames && self.is_alone(frame, &mut to_host);
            match (fit, alone) {
                (true, None) => alone = Some(i),
                (false, Some(start)) => {
                    to_host.returned += self.return_to_host(first.add(start), i - start);
                    alone = None;
                }
                _ => {}
            }
        }
        self.ledger.release(first, frames);
        to_host
    }

    /// Whether the caller's reference is the last one, and no device has the frame pinned. Then it stays so: no leaf leads
    /// to it any more.
    fn is_alone(&self, frame: FrameNo, to_host: &mut ToHost) -> bool {
        let shared = self.frame_state(frame).refs > 1;
        // Acquire, inside: a device that has let go is done with the bytes.
        let pinned = !shared && self.frames().is_pinned(frame);
        to_host.shared += u64::from(shared);
        to_host.pinned += u64::from(pinned);
        !shared && !pinned
    }

    /// Gives the memory of `frames` from `first` on to the host, which are in use by the caller alone; how many of them had
    /// been used.
    fn return_to_host(&self, first: FrameNo, frames: u64) -> u64 {
        if !self.punch(first, frames) {
            // They may be zero in part. Their mark stays, so they are cleared when they are next handed out.
            return 0;
        }
        let was_written = |&i: &u64| self.frames().clear_written(first.add(i));
        let used = (0..frames).filter(was_written).count() as u64;
        self.returned_bytes.fetch_add(used * FRAME_BYTES, Ordering::Relaxed);
        used
    }

    /// What `reservation` has left, in use from now on, for who gives all of its block to the host: the host may have
    /// memory for what nobody has used yet. None where memory is short, for others may need it in this moment.
    pub(crate) fn claim_rest(&self, reservation: Reservation) -> Vec<FrameNo> {
        let block = PageSize::Size2M.frames();
        if self.ledger.usage().free < block {
            return Vec::new();
        }
        (0..block).filter_map(|offset| self.ledger.claim(reservation, offset)).collect()
    }
}

#[cfg(not(loom))]
impl Pool {
    /// Gives a block to the host that was [prepared](Pool::prepare), and that nobody has used since.
    pub(crate) fn unprepare(&self, block: BlockNo) {
        let (first, frames) = (block.first(), PageSize::Size2M.frames());
        if !self.ledger.alloc_spare_block(block) {
            return;
        }
        if (0..frames).all(|i| !self.frame_state(first.add(i)).written) {
            // Failing, the host keeps it for who uses it next.
            self.punch(first, frames);
        }
        self.ledger.release(first, frames);
    }

    /// Bytes that the host has memory for.
    pub(super) fn host_bytes(&self) -> u64 {
        self.backing.host_bytes()
    }

    /// Has the host take the bytes of a run, which read as zero from then on; whether it did.
    fn punch(&self, first: FrameNo, frames: u64) -> bool {
        let granule = self.granule().frames();
        let whole = |frames: u64| frames.is_multiple_of(granule);
        let fits = whole(first.index() as u64) && whole(frames);
        fits && self.backing.punch(first, frames).is_ok()
    }

    /// Whether the host has memory for a run that was just taken, where it may have none: a hugetlb page that went back may
    /// be somebody else's by now, and the first access would end this process.
    pub(super) fn is_backed(&self, first: FrameNo, frames: u64) -> bool {
        self.granule() == PageSize::Size4K
            || self.frame_state(first).written
            || self.memory.prefault(first, frames).is_ok()
    }
}

#[cfg(loom)]
impl Pool {
    pub(super) fn host_bytes(&self) -> u64 {
        0
    }

    fn punch(&self, first: FrameNo, frames: u64) -> bool {
        self.memory.zero(first, frames);
        true
    }

    pub(super) fn is_backed(&self, _first: FrameNo, _frames: u64) -> bool {
        true
    }
}
