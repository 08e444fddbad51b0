//! Memory that is pinned page by page, for as long as it is used.

use std::fmt;

use guest_mm::addr::{Gpa, GpaRange};
use guest_mm::pin::OwnedPinBatch;
use guest_mm::prot::Access;
use guest_mm::protocol::{Protocol, Sound};
use guest_mm::{GuestView, Pinner};
use vm_memory::VolatileSlice;

use super::{Dma, DmaError, Hold, Segment};

/// Pins while a device uses memory: see [`Pinner`].
#[derive(Debug)]
pub struct Pinning<P: Protocol = Sound>(Pinner<P>);

impl<P: Protocol> Pinning<P> {
    /// Access by `pinner`.
    pub fn new(pinner: Pinner<P>) -> Pinning<P> {
        Pinning(pinner)
    }
}

impl<P: Protocol> Clone for Pinning<P> {
    fn clone(&self) -> Self {
        Pinning(self.0.clone())
    }
}

impl<P: Protocol + fmt::Debug> Dma for Pinning<P> {
    type View<'v> = GuestView<'v, P>;
    type Hold = OwnedPinBatch<P>;

    fn view(&self) -> GuestView<'_, P> {
        self.0.view()
    }

    fn hold(&self) -> OwnedPinBatch<P> {
        self.0.batch()
    }
}

/// Ranges and runs that room is kept for: a guest that once had a large request does not keep the host's memory.
const ROOM: usize = 512;

/// The bytes of `segment`.
fn range(segment: Segment) -> Result<GpaRange, String> {
    GpaRange::new(Gpa::new(segment.addr), segment.len.into()).map_err(|error| error.to_string())
}

impl<P: Protocol + fmt::Debug> Hold for OwnedPinBatch<P> {
    fn take(&mut self, segments: &[Segment], access: Access) -> Result<(), DmaError> {
        let error = |segment: &Segment, reason| DmaError {
            addr: segment.addr,
            len: segment.len,
            access,
            reason,
        };
        for segment in segments {
            range(*segment).map_err(|reason| error(segment, reason))?;
        }
        let ranges = segments.iter().filter_map(|&segment| range(segment).ok());
        self.pin(ranges.map(|range| (range, access))).map_err(|refused| {
            // Which of them it was is in the reason.
            error(&segments[0], refused.to_string())
        })
    }

    fn for_each(&self, mut see: impl FnMut(VolatileSlice<'_>)) {
        for index in 0..self.len() {
            self.slices(index).for_each(&mut see);
        }
    }

    fn release(&mut self) {
        self.unpin();
        self.shrink_to(ROOM);
    }
}
