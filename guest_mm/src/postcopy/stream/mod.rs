//! Messages over anything that reads and writes.
//!
//! A [`FrameReader`] and a [`FrameWriter`] each serve one direction of one stream. What they are told they check: a frame that is
//! damaged, too long, or on the wrong stream is a [`StreamError`], after which the stream is of no further use.
//!
//! The bytes of pages are not copied on their way: [`FrameWriter::write_pages`] hands them to the socket where they lie, together with
//! their header, or by reference ([`FrameWriter::write_pages_of`]), and [`FrameReader::read_into`] has them read to where they stay.
//! Each page is summed up while the cache still has it.
//!
//! # When a call is dropped before it is done
//! Messages survive it: what has been read of one is kept for the next call, and what has not been written of one goes out before
//! the next. Payloads do not: behind a payload that was read or written in part, the stream fails with
//! [`StreamError::Abandoned`].

mod error;
mod file;
mod greeting;
mod intake;
mod packing;
mod reader;
mod urgent;
mod writer;

#[cfg(test)]
mod tests;

pub use error::StreamError;
pub use file::SendFile;
pub use greeting::{greet, read_hello, write_welcome};
pub use packing::Packer;
pub use reader::{BulkFrame, FrameReader};
pub use urgent::Sent;
pub use writer::FrameWriter;
