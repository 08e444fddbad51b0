//! The header that every frame begins with.

use std::fmt;

use super::checksum::body_checksum;
use super::control::{self, RUNS_PER_PART};
use super::fields::RUN_BYTES;
use super::{MOST_DESCRIPTION, MOST_REASON, STATE_PART, WireError, pages, request};

/// A stream of the channel and the direction in which a frame goes on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lane {
    /// The control stream, from the source.
    ControlToSink,
    /// The control stream, from the sink.
    ControlToSource,
    /// The urgent stream, from the source: pages.
    UrgentToSink,
    /// The urgent stream, from the sink: requests.
    UrgentToSource,
    /// A bulk stream, from the source. Nothing goes the other way.
    BulkToSink,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lane::ControlToSink => "on the control stream to the sink",
            Lane::ControlToSource => "on the control stream to the source",
            Lane::UrgentToSink => "on the urgent stream to the sink",
            Lane::UrgentToSource => "on the urgent stream to the source",
            Lane::BulkToSink => "on a bulk stream",
        })
    }
}

/// What a frame is. Bit 7 is set on those that are not of the control stream, bit 6 on those of the control stream to the source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// [`Control::Offer`](super::Control::Offer)
    Offer = 0x01,
    /// [`Control::State`](super::Control::State)
    State = 0x02,
    /// [`Control::SwitchOver`](super::Control::SwitchOver)
    SwitchOver = 0x03,
    /// [`Control::AllSent`](super::Control::AllSent)
    AllSent = 0x04,
    /// [`Control::Cancel`](super::Control::Cancel)
    Cancel = 0x05,
    /// [`Control::Ping`](super::Control::Ping)
    Ping = 0x06,
    /// [`Control::Freed`](super::Control::Freed)
    Freed = 0x07,
    /// [`Control::Go`](super::Control::Go)
    Go = 0x08,
    /// [`Control::Accept`](super::Control::Accept)
    Accept = 0x41,
    /// [`Control::Refuse`](super::Control::Refuse)
    Refuse = 0x42,
    /// [`Control::Received`](super::Control::Received)
    Received = 0x43,
    /// [`Control::Running`](super::Control::Running)
    Running = 0x44,
    /// [`Control::Complete`](super::Control::Complete)
    Complete = 0x45,
    /// [`Control::Failed`](super::Control::Failed)
    Failed = 0x46,
    /// [`Control::Pong`](super::Control::Pong)
    Pong = 0x47,
    /// [`Control::Ready`](super::Control::Ready)
    Ready = 0x48,
    /// [`Control::Ended`](super::Control::Ended)
    Ended = 0x49,
    /// [`Request`](super::Request)
    Request = 0x81,
    /// [`PagesHeader`](super::PagesHeader)
    Pages = 0x82,
    /// The end of what was sent before it on each bulk stream.
    Fence = 0x83,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 20] = [
        Kind::Offer,
        Kind::State,
        Kind::SwitchOver,
        Kind::AllSent,
        Kind::Cancel,
        Kind::Ping,
        Kind::Freed,
        Kind::Go,
        Kind::Accept,
        Kind::Refuse,
        Kind::Received,
        Kind::Running,
        Kind::Complete,
        Kind::Failed,
        Kind::Pong,
        Kind::Ready,
        Kind::Ended,
        Kind::Request,
        Kind::Pages,
        Kind::Fence,
    ];

    /// Its name in messages and in `docs/wire.md`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Offer => "Offer",
            Kind::State => "State",
            Kind::SwitchOver => "SwitchOver",
            Kind::AllSent => "AllSent",
            Kind::Cancel => "Cancel",
            Kind::Ping => "Ping",
            Kind::Freed => "Freed",
            Kind::Go => "Go",
            Kind::Accept => "Accept",
            Kind::Refuse => "Refuse",
            Kind::Received => "Received",
            Kind::Running => "Running",
            Kind::Complete => "Complete",
            Kind::Failed => "Failed",
            Kind::Pong => "Pong",
            Kind::Ready => "Ready",
            Kind::Ended => "Ended",
            Kind::Request => "Request",
            Kind::Pages => "Pages",
            Kind::Fence => "Fence",
        }
    }

    /// The longest body it may have, in bytes.
    pub const fn limit(self) -> usize {
        match self {
            Kind::Offer => {
                control::OFFER_FIXED + control::MOST_RANGES * RUN_BYTES + MOST_DESCRIPTION
            }
            Kind::State => STATE_PART,
            Kind::SwitchOver => 8 + RUNS_PER_PART * RUN_BYTES,
            Kind::Received => RUNS_PER_PART * RUN_BYTES,
            Kind::AllSent | Kind::Complete => 24,
            Kind::Cancel | Kind::Refuse | Kind::Failed => MOST_REASON,
            Kind::Ping | Kind::Pong | Kind::Fence => 8,
            Kind::Freed | Kind::Go | Kind::Accept | Kind::Ready | Kind::Running | Kind::Ended => 0,
            Kind::Request => request::BODY_BYTES,
            Kind::Pages => pages::LONGEST_BODY,
        }
    }

    /// Whether it may go over `lane`.
    pub const fn belongs_to(self, lane: Lane) -> bool {
        match lane {
            Lane::ControlToSink => (self as u8) < 0x40,
            Lane::ControlToSource => (self as u8) & 0xc0 == 0x40,
            Lane::UrgentToSink => matches!(self, Kind::Pages),
            Lane::UrgentToSource => matches!(self, Kind::Request),
            Lane::BulkToSink => matches!(self, Kind::Pages | Kind::Fence),
        }
    }

    /// Whether it may have these flags on `lane`.
    const fn allows(self, flags: u8, lane: Lane) -> bool {
        match self {
            Kind::State | Kind::SwitchOver | Kind::Received => flags & !control::LAST == 0,
            Kind::Pages => pages::purpose(flags, lane).is_some(),
            _ => flags == 0,
        }
    }

    fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first 16 bytes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    kind: Kind,
    flags: u8,
    length: u32,
    checksum: u64,
    lane: Lane,
}

impl FrameHeader {
    /// Its length.
    pub const BYTES: usize = 16;

    /// Reads the header of a frame that came over `lane`; its length is within the limit of its kind.
    ///
    /// # Errors
    /// [`WireError::UnknownKind`], [`WireError::WrongLane`], [`WireError::Flags`], [`WireError::Reserved`] and
    /// [`WireError::TooLong`].
    pub fn decode(bytes: &[u8; FrameHeader::BYTES], lane: Lane) -> Result<FrameHeader, WireError> {
        let mut fields = super::fields::Fields::new("frame", bytes);
        let byte = fields.u8()?;
        let kind = Kind::from_byte(byte).ok_or(WireError::UnknownKind(byte))?;
        if !kind.belongs_to(lane) {
            return Err(WireError::WrongLane { kind, lane });
        }
        let flags = fields.u8()?;
        if !kind.allows(flags, lane) {
            return Err(WireError::Flags { kind, flags, lane });
        }
        fields.reserved::<2>()?;
        let (length, checksum) = (fields.u32()?, fields.u64()?);
        if length as usize > kind.limit() {
            return Err(too_long(kind, length as usize));
        }
        Ok(FrameHeader { kind, flags, length, checksum, lane })
    }

    /// What the frame is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The length of its body, in bytes: at most [`Kind::limit`].
    pub const fn body_bytes(&self) -> usize {
        self.length as usize
    }

    pub(super) const fn flags(&self) -> u8 {
        self.flags
    }

    pub(super) const fn lane(&self) -> Lane {
        self.lane
    }

    /// Fails unless `body` has the length and the checksum that the header says.
    pub(super) fn check(&self, body: &[u8]) -> Result<(), WireError> {
        let what = self.kind.name();
        if body.len() != self.body_bytes() {
            return Err(WireError::Length { what, length: body.len() as u64 });
        }
        let seed = first_half(self.kind, self.flags, self.length);
        if body_checksum(seed, body) != self.checksum {
            return Err(WireError::Checksum(what));
        }
        Ok(())
    }
}

fn too_long(kind: Kind, length: usize) -> WireError {
    WireError::TooLong { what: kind.name(), length: length as u64, limit: kind.limit() as u64 }
}

fn first_half(kind: Kind, flags: u8, length: u32) -> [u8; 8] {
    let mut half = [kind as u8, flags, 0, 0, 0, 0, 0, 0];
    half[4..].copy_from_slice(&length.to_le_bytes());
    half
}

/// Splits a whole frame that came over `lane` into header and body.
pub(super) fn split(frame: &[u8], lane: Lane) -> Result<(FrameHeader, &[u8]), WireError> {
    let length = frame.len() as u64;
    let (header, body) =
        frame.split_first_chunk().ok_or(WireError::Length { what: "frame", length })?;
    let header = FrameHeader::decode(header, lane)?;
    header.check(body)?;
    Ok((header, body))
}

/// Puts a frame behind `out` whose body `write` writes; what fails leaves `out` as it was.
pub(super) fn put(
    kind: Kind,
    flags: u8,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let start = out.len();
    out.extend([0; FrameHeader::BYTES]);
    let written = write(out).and_then(|()| {
        let length = out.len() - start - FrameHeader::BYTES;
        if length > kind.limit() { Err(too_long(kind, length)) } else { Ok(length as u32) }
    });
    match written {
        Ok(length) => {
            let half = first_half(kind, flags, length);
            let sum = body_checksum(half, &out[start + FrameHeader::BYTES..]);
            out[start..start + 8].copy_from_slice(&half);
            out[start + 8..start + FrameHeader::BYTES].copy_from_slice(&sum.to_le_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}
