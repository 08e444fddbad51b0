//! The usual way: all of RAM is one mapping, and an address is a bounds check away. Nothing is pinned, because
//! nothing ever moves: this is what a pin costs a device model on top.

use std::hint::black_box;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::bench::BenchError;

use super::pages::{PAGE, PAGES};

/// RAM as vm-memory has it.
#[derive(Debug)]
pub(super) struct Mapped(GuestMemoryMmap);

impl Mapped {
    /// One region of [`PAGES`] pages.
    pub(super) fn new() -> Result<Mapped, BenchError> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (PAGES * PAGE) as usize)])
            .map(Mapped)
            .map_err(|error| BenchError::System(std::io::Error::other(error)))
    }

    /// Finds a page's bytes.
    #[inline(never)]
    pub(super) fn slice(&self, page: u64) {
        let slice = self.0.get_slice(GuestAddress(page * PAGE), PAGE as usize);
        let _ = black_box(slice.is_ok_and(|slice| !black_box(slice).is_empty()));
    }
}
