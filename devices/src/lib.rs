//! Device models: the buses and the legacy devices of a PC.
//!
//! ```text
//! F1   serial  i8042  cmos  debug_exit  quiet      one device a file; they do not know each other
//! F0   bus                                         address ranges, dispatch, what nobody claimed
//! ```
//!
//! A device is a [`bus::BusDevice`]: it sees offsets into its own range and plain bytes. It knows neither KVM nor guest
//! memory, so every one of them is tested without a machine. What a device wants of the machine (reset, exit) it says with
//! the value it returns from a write, never through shared state.
//!
//! There are no virtio devices yet, nothing does DMA, and only the serial port raises an interrupt.

pub mod bus;
pub mod cmos;
pub mod debug_exit;
pub mod i8042;
pub mod quiet;
pub mod serial;
