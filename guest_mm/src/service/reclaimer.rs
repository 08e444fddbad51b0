//! The right to give a guest's memory back, apart from the guest.

use std::sync::Arc as Shared;

use crate::addr::{GfnRange, PageSize};
use crate::protocol::{Protocol, Sound};
use crate::space::AddressSpace;
use crate::unmap::{self, GiveBackError, GivenBack, TakeBackError};

/// What a balloon's thread needs of a guest: to give back what the guest says that it does not need, and to take it again.
/// Drop it before the guest.
#[derive(Debug)]
pub struct Reclaimer<P: Protocol = Sound> {
    space: Shared<AddressSpace<P>>,
}

impl<P: Protocol> Reclaimer<P> {
    pub(super) fn new(space: Shared<AddressSpace<P>>) -> Reclaimer<P> {
        Reclaimer { space }
    }

    /// The smallest page of the pool: what begins or ends inside of one is refused.
    pub fn granule(&self) -> PageSize {
        self.space.pool.granule()
    }

    /// As [`super::Guest::give_back`].
    ///
    /// # Errors
    /// [`GiveBackError`], likewise.
    pub fn give_back(&self, range: GfnRange) -> Result<GivenBack, GiveBackError> {
        unmap::give_back(&self.space, range)
    }

    /// As [`super::Guest::take_back`].
    ///
    /// # Errors
    /// [`TakeBackError`].
    pub fn take_back(&self, range: GfnRange) -> Result<u64, TakeBackError> {
        unmap::take_back(&self.space, range)
    }
}

impl<P: Protocol> Clone for Reclaimer<P> {
    fn clone(&self) -> Self {
        Reclaimer::new(Shared::clone(&self.space))
    }
}
