//! Memory that is pinned all of it, once and for good: what a device needs that is passed through, whose DMA nobody sees.
//! It is here for comparison: nothing of such a guest can be moved, merged or given back.

use std::iter::FusedIterator;
use std::sync::Arc;

use guest_mm::Pinner;
use guest_mm::addr::{Gpa, GpaRange};
use guest_mm::pin::{OwnedPinBatch, PinError};
use guest_mm::prot::Access;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryResult, Permissions, VolatileSlice,
};

use super::{Dma, DmaError, Hold, Segment};

/// Bytes that are pinned, and found, together.
const BLOCK: u64 = 2 << 20;

/// All of a guest's memory from address 0 on, pinned.
#[derive(Clone, Debug)]
pub struct Standing(Arc<Pinned>);

#[derive(Debug)]
struct Pinned {
    /// A range for each block.
    blocks: OwnedPinBatch,
    bytes: u64,
}

impl Standing {
    /// Pins the first `bytes` of the guest of `pinner`, a multiple of 2 MiB.
    ///
    /// # Errors
    /// [`PinError`]: nothing is pinned.
    pub fn new(pinner: &Pinner, bytes: u64) -> Result<Standing, PinError> {
        let mut blocks = pinner.batch();
        let starts = (0..bytes / BLOCK).map(|block| Gpa::new(block * BLOCK));
        let ranges = starts.filter_map(|start| GpaRange::new(start, BLOCK).ok());
        blocks.pin(ranges.map(|range| (range, Access::Write)))?;
        Ok(Standing(Arc::new(Pinned { blocks, bytes })))
    }
}

impl Pinned {
    fn holds(&self, addr: u64, len: u64) -> bool {
        addr.checked_add(len).is_some_and(|end| end <= self.bytes)
    }

    /// The memory at `addr`, up to `len` bytes as far as it lies in order.
    fn slice(&self, addr: u64, len: u64) -> Option<VolatileSlice<'_>> {
        let mut offset = (addr % BLOCK) as usize;
        for slice in self.blocks.slices((addr / BLOCK) as usize) {
            if offset < slice.len() {
                let len = (slice.len() - offset).min(len as usize);
                return slice.subslice(offset, len).ok();
            }
            offset -= slice.len();
        }
        None
    }
}

/// That memory during a burst.
#[derive(Clone, Copy, Debug)]
pub struct StandingView<'v>(&'v Pinned);

struct Slices<'a> {
    pinned: &'a Pinned,
    next: u64,
    left: u64,
}

impl<'a> Iterator for Slices<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let slice = self.pinned.slice(self.next, self.left)?;
        self.next += slice.len() as u64;
        self.left -= slice.len() as u64;
        Some(Ok(slice))
    }
}

impl FusedIterator for Slices<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}

impl GuestMemory for StandingView<'_> {
    type PhysicalMemory = vm_memory::GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        self.0.holds(addr.0, count as u64)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        if !self.0.holds(addr.0, count as u64) {
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        Ok(Slices { pinned: self.0, next: addr.0, left: count as u64 })
    }
}

/// Segments of that memory.
#[derive(Debug)]
pub struct StandingHold {
    pinned: Arc<Pinned>,
    taken: Vec<Segment>,
}

impl Dma for Standing {
    type View<'v> = StandingView<'v>;
    type Hold = StandingHold;

    fn view(&self) -> StandingView<'_> {
        StandingView(&self.0)
    }

    fn hold(&self) -> StandingHold {
        StandingHold { pinned: Arc::clone(&self.0), taken: Vec::new() }
    }
}

impl Hold for StandingHold {
    fn take(&mut self, segments: &[Segment], access: Access) -> Result<(), DmaError> {
        let outside = segments.iter().find(|s| !self.pinned.holds(s.addr, s.len.into()));
        if let Some(&Segment { addr, len }) = outside {
            return Err(DmaError { addr, len, access, reason: "it is not RAM".into() });
        }
        self.taken.extend_from_slice(segments);
        Ok(())
    }

    fn for_each(&self, mut see: impl FnMut(VolatileSlice<'_>)) {
        for segment in &self.taken {
            let pinned = &*self.pinned;
            let slices = Slices { pinned, next: segment.addr, left: segment.len.into() };
            slices.flatten().for_each(&mut see);
        }
    }

    fn release(&mut self) {
        self.taken.clear();
    }
}
