//! The messages of the page channel as bytes: a codec without I/O.
//!
//! A stream begins with a [`Hello`] and a [`Welcome`]. Frames follow: a header of 16 bytes ([`FrameHeader`]) and a body, and behind
//! that of [`PagesHeader`] the bytes of pages. All integers are little-endian. Whatever is decoded comes from a stranger: each
//! length is checked against the limit of its kind before anything is allocated, every byte has to mean something, and what does
//! not is a [`WireError`].
//!
//! `docs/wire.md` has the tables of bytes.

mod checksum;
mod control;
mod error;
mod fields;
mod frame;
mod hello;
mod pages;
mod parts;
mod reason;
mod request;

#[cfg(test)]
mod document;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

pub use checksum::{Digest, ZERO_PAGE_CHECKSUM, is_zero, page_checksum};
pub use control::{Control, MOST_RANGES, Mode, Offer, Part, RUNS_PER_PART};
pub use error::WireError;
pub use frame::{FrameHeader, Kind, Lane};
pub use hello::{Hello, Refusal, Role, Session, Versions, Welcome};
pub use pages::{Encoding, MOST_PAGES, PAGE_BYTES, PagesHeader, Purpose};
pub(in crate::postcopy) use pages::{fence, put_fence};
pub use parts::{Parts, STATE_PART, runs_in_parts, state_parts};
pub use reason::Reason;
pub use request::Request;

/// Most bulk streams of one channel.
pub const MOST_BULK_STREAMS: u8 = 8;

/// Most bytes of an offer's description.
pub const MOST_DESCRIPTION: usize = 1 << 20;

/// Most bytes of a machine's state, in all of its parts.
pub const MOST_STATE: usize = 64 << 20;

/// Most bytes of a reason.
pub const MOST_REASON: usize = 1 << 10;
