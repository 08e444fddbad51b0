//! Device models: the buses, the legacy devices of a PC, and virtio devices.
//!
//! ```text
//! F2   virtio                                      transport, threads, and the models, which do DMA
//! F1   serial  i8042  cmos  debug_exit  quiet      one device a file; they do not know each other
//!      acpi_power
//!      dma                                         guest memory: the only user of the service, and of pins
//! F0   bus                                         address ranges, dispatch, what nobody claimed
//! ```
//!
//! A device is a [`bus::BusDevice`]: it sees offsets into its own range and plain bytes. It does not know KVM, so every one
//! of them is tested without a machine. What a device wants of the machine (reset, power-off, exit) it says with the value it returns
//! from a write, never through shared state.
//!
//! A virtio device reaches guest memory through [`dma`] alone. What it uses is pinned while it uses it, page by page.

pub mod acpi_power;
pub mod bus;
pub mod cmos;
pub mod debug_exit;
pub mod dma;
pub mod i8042;
pub mod quiet;
pub mod serial;
pub mod virtio;
