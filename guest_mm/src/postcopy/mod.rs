//! The page channel: how a guest's pages go from where they are to where they are wanted.
//!
//! ```text
//! wire        messages as bytes, and back: no I/O
//! stream      messages over anything that reads and writes; payloads go straight to where they stay
//! transport   what streams run over: Unix sockets, TCP, TLS with both sides' certificates
//! requests    who waits for which page: one request for it, however many they are
//! plan        what a source still has to send, and in which order
//! ```

#[cfg(not(loom))]
mod plan;
mod requests;
#[cfg(not(loom))]
pub mod stream;
#[cfg(not(loom))]
pub mod transport;
#[cfg(not(loom))]
pub mod wire;
