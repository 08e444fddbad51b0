//! Memory that nobody moves, for tests and for comparison: plain `vm-memory`, a translation without a pin.

use std::sync::Arc;

use guest_mm::prot::Access;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryResult, Permissions, VolatileSlice,
};

use super::{Dma, DmaError, Hold, Segment};

/// A mapping of this process's own.
#[derive(Clone, Debug)]
pub struct Plain(Arc<GuestMemoryMmap>);

impl Plain {
    /// Access to `memory`.
    pub fn new(memory: GuestMemoryMmap) -> Plain {
        Plain(Arc::new(memory))
    }
}

/// That memory during a burst.
#[derive(Clone, Copy, Debug)]
pub struct PlainView<'v>(&'v GuestMemoryMmap);

impl GuestMemory for PlainView<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(self.0, addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        GuestMemory::get_slices(self.0, addr, count, access)
    }

    fn physical_memory(&self) -> Option<&GuestMemoryMmap> {
        Some(self.0)
    }
}

/// Translated pieces of that memory; nothing is done to keep them.
#[derive(Debug)]
pub struct PlainHold {
    memory: Arc<GuestMemoryMmap>,
    taken: Vec<Segment>,
}

impl PlainHold {
    /// What becomes of a segment.
    fn translate(
        &self,
        segment: Segment,
        mut see: impl FnMut(VolatileSlice<'_>),
    ) -> Result<(), String> {
        let at = GuestAddress(segment.addr);
        let slices = self.memory.get_slices(at, segment.len as usize, Permissions::ReadWrite);
        for slice in slices.map_err(|error| error.to_string())? {
            see(slice.map_err(|error| error.to_string())?);
        }
        Ok(())
    }
}

impl Dma for Plain {
    type View<'v> = PlainView<'v>;
    type Hold = PlainHold;

    fn view(&self) -> PlainView<'_> {
        PlainView(&self.0)
    }

    fn hold(&self) -> PlainHold {
        PlainHold { memory: Arc::clone(&self.0), taken: Vec::new() }
    }
}

impl Hold for PlainHold {
    fn take(&mut self, segments: &[Segment], access: Access) -> Result<(), DmaError> {
        for &segment in segments {
            let Segment { addr, len } = segment;
            let translated = self.translate(segment, |_| {});
            translated.map_err(|reason| DmaError { addr, len, access, reason })?;
        }
        self.taken.extend_from_slice(segments);
        Ok(())
    }

    fn for_each(&self, mut see: impl FnMut(VolatileSlice<'_>)) {
        for &segment in &self.taken {
            self.translate(segment, &mut see).expect("a mapping stays as it is");
        }
    }

    fn release(&mut self) {
        self.taken.clear();
    }
}
