//! The page channel: how a guest's pages go from where they are to where they are wanted.
//!
//! ```text
//! source      a guest that goes: rounds of pre-copy, the switch-over, pages that are asked for
//! sink        a guest that comes: pages that are placed, and asked for
//! machine     what both ask of the machine: all that is not memory
//! freight     pages on their way out                  landing     pages on their way in
//! plan        what a source still has to send         requests    who waits for which page
//! report      what is told of it                      error       how it ends otherwise
//! threads     a thread for each stream, with a runtime of its own
//! transport   what streams run over: Unix sockets, TCP, TLS with both sides' certificates
//! stream      messages over anything that reads and writes; payloads go straight to where they stay
//! wire        messages as bytes, and back: no I/O
//! ```
//!
//! `docs/wire.md` is precise enough to write a second implementation from.

#[cfg(not(loom))]
mod error;
#[cfg(not(loom))]
mod freight;
#[cfg(not(loom))]
mod landing;
#[cfg(not(loom))]
pub mod machine;
#[cfg(not(loom))]
mod plan;
#[cfg(not(loom))]
pub mod report;
mod requests;
#[cfg(not(loom))]
pub mod sink;
#[cfg(not(loom))]
pub mod source;
#[cfg(not(loom))]
pub mod stream;
#[cfg(not(loom))]
mod threads;
#[cfg(not(loom))]
pub mod transport;
#[cfg(not(loom))]
pub mod wire;

#[cfg(not(loom))]
pub use error::Trouble;
