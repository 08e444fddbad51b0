//! The right to pin a guest's memory, apart from the guest.

use std::sync::Arc as Shared;

use crate::pin::OwnedPinBatch;
use crate::protocol::{Protocol, Sound};
use crate::space::AddressSpace;
use crate::vm_memory::GuestView;

/// What a device thread needs of a guest: to pin its memory, and no more. Drop it before the guest: what is still pinned
/// when that is taken down makes its books wrong, and what is pinned later is in nobody's.
#[derive(Debug)]
pub struct Pinner<P: Protocol = Sound> {
    space: Shared<AddressSpace<P>>,
}

impl<P: Protocol> Pinner<P> {
    pub(super) fn new(space: Shared<AddressSpace<P>>) -> Pinner<P> {
        Pinner { space }
    }

    /// The memory as `vm-memory` has it, for one burst of requests: see [`GuestView`].
    pub fn view(&self) -> GuestView<'_, P> {
        GuestView::new(&self.space)
    }

    /// A batch to pin many ranges with, empty.
    pub fn batch(&self) -> OwnedPinBatch<P> {
        OwnedPinBatch::new(Shared::clone(&self.space))
    }
}

impl<P: Protocol> Clone for Pinner<P> {
    fn clone(&self) -> Self {
        Pinner::new(Shared::clone(&self.space))
    }
}
