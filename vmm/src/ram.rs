//! What the monitor asks of a guest's memory, whoever serves it.

use std::fmt;

use crate::kvm::Slot;

/// A guest's RAM. The service's guests are one; the benchmarks' bare loop is another.
pub trait Ram: Send + Sync + fmt::Debug {
    /// Where it is in this process, for KVM.
    fn slots(&self) -> Vec<Slot>;

    /// Copies guest-physical memory out; false when part of it is not there.
    fn read(&self, gpa: u64, into: &mut [u8]) -> bool;

    /// Sees to it that an access to the window at `gpa`, by whoever acts as the guest in this process, is served: false for
    /// what is no RAM, or what the guest may not have.
    fn ready(&self, gpa: u64, write: bool) -> bool;

    /// The pages at these guest-physical addresses were written to through the window by whoever acts as the guest: KVM does
    /// not know. Said before a vCPU comes to rest.
    fn wrote(&self, _pages: &[u64]) {}
}
