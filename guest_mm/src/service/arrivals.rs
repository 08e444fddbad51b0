//! What comes to a guest from elsewhere.

use crate::addr::{Gfn, GfnRange, Gpa};
use crate::place::{
    self, Arrived, Arriving, BlockParcel, Content, Onto, PlaceError, Placed, RunParcel,
};
use crate::protocol::Protocol;

use super::Guest;

impl<P: Protocol> Guest<P> {
    /// Puts `content` to the page around `gpa`, if that is absent or missing, and lets those go on that wait for it.
    ///
    /// # Errors
    /// [`PlaceError`]: there is no room for it, or nothing may be there.
    pub fn place(&self, gpa: Gpa, content: Content<'_>) -> Result<Placed, PlaceError> {
        place::place(self.space(), gpa, content)
    }

    /// Fills the pages from `first` on, all in one block, as `onto` has it, and lets those go on that wait for one of them.
    ///
    /// # Errors
    /// [`PlaceError`]: pages before the one that it names have arrived.
    pub fn arrive<'a>(
        &self,
        first: Gfn,
        onto: Onto,
        pages: impl ExactSizeIterator<Item = Arriving<'a>>,
    ) -> Result<Arrived, PlaceError> {
        place::arrive(self.space(), first, onto, pages)
    }

    /// Frames to be filled for the pages of `range`, all in one block, which then [arrive](Guest::arrive); none if one of the pages is
    /// there, or there is no room where they should lie.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn run_parcel(&self, range: GfnRange, onto: Onto) -> Result<Option<RunParcel>, PlaceError> {
        RunParcel::new(self.space(), range, onto)
    }

    /// A block of the pool to be filled for the guest block around `gfn`; none if that is not all RAM, or no block is whole.
    pub fn block_parcel(&self, gfn: Gfn) -> Option<BlockParcel> {
        BlockParcel::new(self.space(), gfn)
    }

    /// Has the guest block that `parcel` is for be it, if nothing of the block is there yet. Otherwise the parcel comes back:
    /// its pages are to arrive one by one.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn place_block(
        &self,
        parcel: BlockParcel,
        onto: Onto,
    ) -> Result<Result<Arrived, BlockParcel>, PlaceError> {
        place::place_block(self.space(), parcel, onto)
    }
}
