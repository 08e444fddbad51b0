//! The guest memory service.

// F0
pub mod addr;
pub mod entry;
pub mod geometry;
pub mod prot;
pub mod protocol;
mod sync;
// F1
pub mod pool;
// F2
pub mod mirror;
mod space;
pub use space::FaultPolicy;
pub mod table;
// F3
#[cfg(not(loom))]
pub mod copy;
pub mod fault;
pub mod mark;
pub mod protect;
pub mod split;
pub mod unmap;
// F4
pub mod mirrors;
// F5
#[cfg(not(loom))]
pub mod audit;
#[cfg(not(loom))]
pub mod map;
#[cfg(not(loom))]
pub mod service;
#[cfg(not(loom))]
pub mod stats;
#[cfg(not(loom))]
pub use service::{Guest, GuestConfig, GuestMm, Service};

#[cfg(all(test, not(loom)))]
mod property;
