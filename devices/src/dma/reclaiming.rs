//! Memory that the guest gives back and takes again: nothing of it is read, written or pinned here.

use guest_mm::Reclaimer;
use guest_mm::addr::{GfnRange, Gpa};
use guest_mm::unmap::{GiveBackError, TakeBackError};

/// Gives back to the memory service: see [`Reclaimer`].
#[derive(Clone, Debug)]
pub struct Reclaiming(Reclaimer);

/// What became of a run of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Frames whose memory went to the host.
    pub went: u64,
    /// Frames that a device has pinned: they are the guest's no more, and their memory stays with the pool.
    pub pinned: u64,
    /// Frames that others use too, and keep.
    pub shared: u64,
}

/// Why a run of frames could not be given back or taken again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Part of it is no RAM.
    #[error("it is not RAM")]
    NotRam,
    /// It shows what is not the guest's.
    #[error("it shows a shared image")]
    Image,
    /// It begins or ends inside a page of the pool.
    #[error("it cuts through a page of the pool")]
    CutsPage,
    /// The memory service failed.
    #[error("{0}")]
    Failed(String),
}

/// What the frame numbers of devices count.
const FRAME_BYTES: u64 = 4096;

impl Reclaiming {
    /// By `reclaimer`.
    pub fn new(reclaimer: Reclaimer) -> Reclaiming {
        Reclaiming(reclaimer)
    }

    /// Frames of the smallest run that can be given back.
    pub fn granule(&self) -> u64 {
        self.0.granule().frames()
    }

    /// Gives `frames` from `first` on to the host. Their next touch reads zeroes.
    ///
    /// # Errors
    /// [`Refused`]. What was refused for what it is has not changed.
    pub fn give_back(&self, first: u64, frames: u64) -> Result<Given, Refused> {
        let given = self.0.give_back(range(first, frames)?).map_err(|error| match error {
            GiveBackError::NotRam(_) => Refused::NotRam,
            GiveBackError::SharedImage(_) => Refused::Image,
            GiveBackError::CutsPage(_) => Refused::CutsPage,
            other => Refused::Failed(other.to_string()),
        })?;
        let went = given.returned_bytes / FRAME_BYTES;
        Ok(Given { went, pinned: given.pinned, shared: given.shared })
    }

    /// The guest wants them again: what nobody has touched since may be filled by blocks from now on. How many that were.
    ///
    /// # Errors
    /// [`Refused`], likewise.
    pub fn take_back(&self, first: u64, frames: u64) -> Result<u64, Refused> {
        self.0.take_back(range(first, frames)?).map_err(|error| match error {
            TakeBackError::NotRam(_) => Refused::NotRam,
            TakeBackError::CutsPage(_) => Refused::CutsPage,
            other => Refused::Failed(other.to_string()),
        })
    }
}

/// What the tables cannot map is no RAM.
fn range(first: u64, frames: u64) -> Result<GfnRange, Refused> {
    let bytes = |frames: u64| frames.checked_mul(FRAME_BYTES).ok_or(Refused::NotRam);
    GfnRange::from_bytes(Gpa::new(bytes(first)?), bytes(frames)?).map_err(|_| Refused::NotRam)
}
