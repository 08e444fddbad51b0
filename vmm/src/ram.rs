//! What the monitor asks of a guest's memory, whoever serves it.

use std::fmt;

use vm_memory::VolatileSlice;

use crate::kvm::Slot;

/// A guest's RAM. The service's guests are one; the benchmarks' bare loop is another.
pub trait Ram: Send + Sync + fmt::Debug {
    /// Where it is in this process, for KVM.
    fn slots(&self) -> Vec<Slot>;

    /// Copies guest-physical memory out; false when part of it is not there.
    fn read(&self, gpa: u64, into: &mut [u8]) -> bool;

    /// Lends `bytes` bytes at `gpa`, which lie in one page, until `act` returns: that page stays where it is. False, and
    /// `act` is not called, when it is not there, or not to be written.
    fn with(
        &self,
        gpa: u64,
        bytes: usize,
        write: bool,
        act: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> bool;
}
