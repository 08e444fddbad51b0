//! The right to pin a guest's memory, apart from the guest.

use std::sync::Arc as Shared;
use std::task::Waker;

use crate::addr::{GfnRange, GpaRange};
use crate::entry::Marker;
use crate::fault;
use crate::pin::OwnedPinBatch;
use crate::protocol::{Protocol, Sound};
use crate::space::AddressSpace;
use crate::vm_memory::GuestView;
use crate::wait::Wait;

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

    /// Whether a page of it may be elsewhere: it was given somebody to ask for such.
    pub fn may_wait(&self) -> bool {
        self.space.pager.is_some()
    }

    /// Whether no page is elsewhere now. Once the guest runs, none will be.
    pub fn is_whole(&self) -> bool {
        !self.space.table.has_any(Marker::Missing)
    }

    /// Asks for every page of `ranges` that is still elsewhere, for all of them at once, and does not wait: when the last one has
    /// come, `waker` is woken, for as long as the [`Wait`] is kept. None if there is nothing to wait for: a pin of `ranges`
    /// finds them, or why not.
    pub fn fetch(&self, ranges: impl IntoIterator<Item = GpaRange>, waker: &Waker) -> Option<Wait> {
        let of_ram = |range: GpaRange| {
            let regions = self.space.ram.iter();
            regions.filter_map(move |region| region.range.intersection(range.frames()))
        };
        let pages = ranges.into_iter().flat_map(of_ram).flat_map(GfnRange::iter);
        fault::fetch(&self.space, pages, waker)
    }
}

impl<P: Protocol> Clone for Pinner<P> {
    fn clone(&self) -> Self {
        Pinner::new(Shared::clone(&self.space))
    }
}
