//! Unix sockets: their files, and their two directions.

mod file;
mod halves;

pub use file::{SocketFile, listening};
pub(super) use halves::{UnixReader, UnixWriter, halves};
