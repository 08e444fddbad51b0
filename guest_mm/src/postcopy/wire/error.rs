//! What can be wrong with bytes.

use super::frame::{Kind, Lane};
use crate::addr::Gfn;

/// Why bytes are no message, or a message cannot be put into bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// The stream does not begin as one of this protocol does.
    #[error(
        "a {0} does not begin with the channel's magic number: the peer speaks another protocol"
    )]
    Magic(&'static str),
    /// Bytes were damaged on their way, or made by a program that sums up differently.
    #[error("the checksum of a {0} is wrong")]
    Checksum(&'static str),
    /// There is no such kind of frame.
    #[error("there is no kind of frame {0:#04x}")]
    UnknownKind(u8),
    /// The frame has its place on another stream, or goes in the other direction.
    #[error("a {kind} has no place {lane}")]
    WrongLane {
        /// What came.
        kind: Kind,
        /// Where it came.
        lane: Lane,
    },
    /// A bit of the frame's flags is set that its kind does not have, or two that exclude each other.
    #[error("a {kind} cannot have the flags {flags:#04x} {lane}")]
    Flags {
        /// The frame.
        kind: Kind,
        /// Its flags.
        flags: u8,
        /// Where it came.
        lane: Lane,
    },
    /// Bytes that have to be zero are not.
    #[error("a {0} has reserved bits set")]
    Reserved(&'static str),
    /// A body would be longer than its kind may be.
    #[error("a {what} of {length} bytes is longer than {limit}")]
    TooLong {
        /// What came.
        what: &'static str,
        /// Its length, in bytes.
        length: u64,
        /// The longest it may be, in bytes.
        limit: u64,
    },
    /// A body ends too early, or goes on behind its last field.
    #[error("a {what} cannot have {length} bytes")]
    Length {
        /// What came.
        what: &'static str,
        /// Its length, in bytes.
        length: u64,
    },
    /// A field has a value without a meaning.
    #[error("a {what} cannot have the {field} {value:#x}")]
    Value {
        /// The message.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A text is not UTF-8.
    #[error("a {0} is not UTF-8")]
    Text(&'static str),
    /// No table can map this guest frame.
    #[error("the guest frame number {0:#x} is out of range")]
    Gfn(u64),
    /// A run of guest frames is empty, or ends past what tables can map.
    #[error("a run of {frames:#x} guest frames from {start:#x} is empty or out of range")]
    Run {
        /// Its first frame.
        start: u64,
        /// How many.
        frames: u64,
    },
    /// A run begins before the one before it has ended.
    #[error(
        "the run that starts at guest frame {0} overlaps the one before it, or is out of order"
    )]
    Order(Gfn),
    /// Pages of one frame lie in two blocks.
    #[error("{count} pages from guest frame {first} are not in one block of 512")]
    CrossesBlock {
        /// The first page.
        first: Gfn,
        /// How many.
        count: u64,
    },
    /// The length of a payload does not fit the pages that it holds.
    #[error("a payload of {length} bytes cannot hold {pages} pages, {encoding}")]
    Payload {
        /// Its length, in bytes.
        length: u64,
        /// The pages in it.
        pages: usize,
        /// How.
        encoding: super::Encoding,
    },
    /// A compressed payload is damaged.
    #[error("the payload of the pages from guest frame {0} does not decompress")]
    Compressed(Gfn),
    /// A page is not what its sender summed up.
    #[error("the checksum of the page at guest frame {0} is wrong")]
    Page(Gfn),
    /// The parts of one message were mixed with another, or disagree.
    #[error("a {0} came between the parts of another message, or does not fit the parts before it")]
    Parts(Kind),
}
