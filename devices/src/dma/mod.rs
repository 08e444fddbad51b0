//! Guest memory as device models get it: the only place that pins.
//!
//! A model never keeps an address of this process. For what it does at once (rings, headers, small payloads) it is lent a
//! [`Dma::View`], which ends with the burst. For a request that goes on by itself (a read by the kernel into guest memory) it
//! takes the request's buffers with a [`Hold`], and lets them go when the request is done.
//!
//! [`Pinning`] is what runs: each page is pinned while a burst or a request uses it, and no longer. Beside it, to say what
//! that costs and saves: [`Standing`] pins all RAM for good, as pass-through does, and [`Plain`] pins nothing at all, which
//! only memory that nobody moves can do.
//!
//! A guest may run before all of its memory is here. [`Arrivals`] is asked for the rest, so that no device's thread waits for it.
//!
//! [`Reclaiming`] is for what a guest gives back: memory that no device touches.

#[cfg(test)]
pub(crate) mod elsewhere;
mod iovecs;
mod pinning;
mod plain;
mod reclaiming;
mod segments;
mod standing;
mod transfer;

use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use vm_memory::{GuestMemory, VolatileSlice};

pub use guest_mm::prot::Access;
pub use guest_mm::wait::Wait;
pub use iovecs::Iovecs;
pub use pinning::Pinning;
pub use plain::{Plain, PlainHold, PlainView};
pub use reclaiming::{Given, Reclaiming, Refused};
pub use segments::{gather, part, scatter};
pub use standing::{Standing, StandingHold, StandingView};
pub use transfer::Transfer;

/// A piece of guest memory that a driver named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes, not 0.
    pub len: u32,
}

impl Segment {
    /// The first `len` bytes, and the rest; `None` where a part would be empty.
    pub fn split_at(self, len: u32) -> (Option<Segment>, Option<Segment>) {
        let head = len.min(self.len);
        let part = |addr, len| (len > 0).then_some(Segment { addr, len });
        // The end of a segment was checked when it was taken from its chain.
        (part(self.addr, head), part(self.addr.wrapping_add(head.into()), self.len - head))
    }
}

/// Why a device cannot use the memory that its driver named.
#[derive(Debug, thiserror::Error)]
#[error("{access:?} of {len} bytes at guest-physical {addr:#x}: {reason}")]
pub struct DmaError {
    /// The first address of the segment.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// What was to be done with it.
    pub access: Access,
    /// What the memory service says.
    pub reason: String,
}

/// Access to one guest's memory.
pub trait Dma: Clone + fmt::Debug + Send + Sync + 'static {
    /// Memory for one burst.
    type View<'v>: GuestMemory
    where
        Self: 'v;
    /// Memory for one request.
    type Hold: Hold;

    /// Lends the memory for a burst; what is used through it stays in place until it is dropped.
    fn view(&self) -> Self::View<'_>;

    /// A hold on nothing.
    fn hold(&self) -> Self::Hold;

    /// Who is asked for memory that is still elsewhere; none if all of it is here.
    fn arrivals(&self) -> Option<Arc<dyn Arrivals>> {
        None
    }
}

/// Memory that comes from elsewhere while the guest runs. Who uses what has not come waits for it, so a device asks here first,
/// and does something else meanwhile. What was here once stays.
pub trait Arrivals: fmt::Debug + Send + Sync {
    /// Asks for all of `segments` that is still elsewhere, at once; when the last of it has come, `waker` is woken, for as long
    /// as the [`Wait`] is kept. None if there is nothing to wait for.
    fn fetch(&self, segments: &mut dyn Iterator<Item = Segment>, waker: &Waker) -> Option<Wait>;

    /// Whether all of a guest that has begun to run is here: for good, then.
    fn are_over(&self) -> bool;
}

/// The buffers of one request, in place for as long as they are held. It is meant to be used again, so that a request
/// allocates nothing.
pub trait Hold: fmt::Debug + Send {
    /// Takes `segments` beside what is held already.
    ///
    /// # Errors
    /// [`DmaError`]; none of `segments` is held.
    fn take(&mut self, segments: &[Segment], access: Access) -> Result<(), DmaError>;

    /// Calls `see` with every piece that is held, in order.
    fn for_each(&self, see: impl FnMut(VolatileSlice<'_>));

    /// Fills `list` with the addresses of what is held, in order.
    fn list(&self, list: &mut Iovecs) {
        list.clear();
        self.for_each(|slice| list.push(&slice));
    }

    /// Lets all go.
    fn release(&mut self);
}
