//! Memory that is pinned page by page, for as long as it is used.

use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use guest_mm::addr::{Gpa, GpaRange};
use guest_mm::pin::OwnedPinBatch;
use guest_mm::prot::Access;
use guest_mm::protocol::{Protocol, Sound};
use guest_mm::{GuestView, Pinner};
use vm_memory::VolatileSlice;

use super::{Arrivals, Dma, DmaError, Hold, Segment, Wait};

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

    fn arrivals(&self) -> Option<Arc<dyn Arrivals>> {
        self.0.may_wait().then(|| Arc::new(self.clone()) as Arc<dyn Arrivals>)
    }
}

impl<P: Protocol + fmt::Debug> Arrivals for Pinning<P> {
    fn fetch(&self, segments: &mut dyn Iterator<Item = Segment>, waker: &Waker) -> Option<Wait> {
        // Who uses what is no range is told so then.
        self.0.fetch(segments.filter_map(|segment| range(segment).ok()), waker)
    }

    fn are_over(&self) -> bool {
        self.0.is_whole()
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
        // The batch takes no more of them behind the one that it refuses.
        let mut last = None;
        let ranges = segments.iter().inspect(|segment| last = Some(*segment));
        let ranges = ranges.filter_map(|&segment| range(segment).ok());
        let pinned = self.pin(ranges.map(|range| (range, access)));
        pinned.map_err(|refused| {
            error(last.expect("what is refused was asked for"), refused.to_string())
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

#[cfg(test)]
mod tests {
    use guest_mm::addr::{Gfn, GfnRange, PageSize};
    use guest_mm::entry::Marker;
    use guest_mm::pool::BackingChoice;
    use guest_mm::{FaultPolicy, GuestConfig, GuestMm};

    use super::*;

    #[test]
    fn the_segment_that_is_refused_is_named_and_none_is_held() {
        if !::tests::require_userfaultfd() {
            return;
        }
        let frames = |first, count| GfnRange::new(Gfn::new(first), count).unwrap();
        let service = GuestMm::new(BackingChoice::Auto, 2 << 20, PageSize::Size4K).unwrap();
        let guest = service
            .add_guest(GuestConfig {
                ram: vec![frames(0, 512)],
                over: Vec::new(),
                on_missing: None,
                policy: FaultPolicy { pages: PageSize::Size4K },
                fault_threads: 1,
                on_stop: Box::new(|_| {}),
            })
            .unwrap();
        guest.mark(frames(16, 1), Marker::Guard).unwrap();
        let dma = Pinning::new(guest.pinner());
        let mut hold = dma.hold();
        let good = |addr| Segment { addr, len: 0x100 };
        for bad in [
            Segment { addr: 0x1_0080, len: 8 },
            Segment { addr: 0x1f_fffc, len: 8 },
            Segment { addr: u64::MAX - 8, len: 8 },
        ] {
            for at in 0..4 {
                let mut segments = [good(0x1000), good(0x2000), good(0x3000), good(0x4000)];
                segments[at] = bad;
                let error = hold.take(&segments, Access::Write).unwrap_err();
                assert_eq!((error.addr, error.len), (bad.addr, bad.len), "{at}: {error}");
                assert!(hold.is_empty());
            }
        }
        hold.take(&[good(0x1000), good(0x2000)], Access::Write).unwrap();
        assert_eq!(hold.len(), 2);
        drop(hold);
        drop(dma);
        guest.close().unwrap();
    }
}
