//! The host's side of a balloon: where what the guest gives back goes.

use std::fmt;

use crate::dma::Reclaiming;

pub use crate::dma::{Given, Refused};

/// Takes a guest's memory, and lets it have it again.
pub trait Reclaim: fmt::Debug + Send {
    /// Frames of the smallest run that can be given back, a power of two.
    fn granule(&self) -> u64;

    /// Gives `frames` from `first` on to the host. Their next touch reads zeroes.
    ///
    /// # Errors
    /// [`Refused`].
    fn give_back(&self, first: u64, frames: u64) -> Result<Given, Refused>;

    /// The guest wants them again; how many of them were as they were given.
    ///
    /// # Errors
    /// [`Refused`].
    fn take_back(&self, first: u64, frames: u64) -> Result<u64, Refused>;
}

impl Reclaim for Reclaiming {
    fn granule(&self) -> u64 {
        Reclaiming::granule(self)
    }

    fn give_back(&self, first: u64, frames: u64) -> Result<Given, Refused> {
        Reclaiming::give_back(self, first, frames)
    }

    fn take_back(&self, first: u64, frames: u64) -> Result<u64, Refused> {
        Reclaiming::take_back(self, first, frames)
    }
}
