//! Virtio devices (virtio 1.3 over MMIO, modern only), for the drivers of the crate `virtio-drivers`.
//!
//! The command line says where devices are ([`windows`]), [`Devices`] looks what they are, and [`Memory`] is where drivers
//! and devices meet. Nothing here uses interrupts: drivers poll.

pub mod windows;

#[cfg(not(test))]
mod devices;
#[cfg(not(test))]
mod failure;
#[cfg(not(test))]
mod memory;

#[cfg(not(test))]
pub use devices::{Device, Devices, Missing};
#[cfg(not(test))]
pub use failure::Failure;
#[cfg(not(test))]
pub use memory::Memory;
