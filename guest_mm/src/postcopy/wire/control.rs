//! The messages of the control stream.

use super::fields::{Fields, RUN_BYTES, check_order, put_runs};
use super::frame::{self, FrameHeader, Kind, Lane};
use super::{Digest, Encoding, MOST_BULK_STREAMS, MOST_DESCRIPTION, Reason, STATE_PART, WireError};
use crate::addr::GfnRange;

/// Most ranges of RAM in an offer.
pub const MOST_RANGES: usize = 64;

/// Most runs in one part of a message that has runs.
pub const RUNS_PER_PART: usize = 1 << 15;

/// Bytes of an offer before its ranges.
pub(super) const OFFER_FIXED: usize = 16;

/// The flag of the last part of a message.
pub(super) const LAST: u8 = 1;

/// When pages are moved: before the guest's vCPUs are, behind them, or both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Mode {
    /// All of them before.
    PreCopy = 0,
    /// All of them behind.
    PostCopy = 1,
    /// Once before, and what was written meanwhile behind.
    Hybrid = 2,
}

/// What a source asks a sink to take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The machine, in whatever form the two monitors agree on: at most [`MOST_DESCRIPTION`] bytes.
    pub description: Vec<u8>,
    /// Its RAM: 1 to [`MOST_RANGES`], in order and apart.
    pub ranges: Vec<GfnRange>,
    /// When pages are moved.
    pub mode: Mode,
    /// How the source would pack bulk pages. Each frame says how it is packed.
    pub encoding: Encoding,
    /// How many bulk streams there are: 1 to [`MOST_BULK_STREAMS`].
    pub bulk_streams: u8,
    /// Whether this session goes on after its connection was lost.
    pub resumes: bool,
}

/// Whether more of a message follows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Part {
    /// In the next frame of its kind.
    More,
    /// This was all of it.
    Last,
}

/// A message of the control stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// To the sink: the first message.
    Offer(Offer),
    /// To the sink: the machine's state, but for its memory.
    State {
        /// At most [`STATE_PART`] bytes of it; none only in the last part.
        bytes: Vec<u8>,
        /// Whether more follows.
        part: Part,
    },
    /// To the sink: the guest has stopped at the source, and is to run at the sink.
    SwitchOver {
        /// The number of the fence behind which no page of the pre-copy is.
        fence: u64,
        /// What the sink does not have in its last form: at most [`RUNS_PER_PART`] runs; none only in the last part.
        missing: Vec<GfnRange>,
        /// Whether more follows.
        part: Part,
    },
    /// To the sink: every page has been sent.
    AllSent(Digest),
    /// To the sink: the migration is given up.
    Cancel(Reason),
    /// To the sink: to be answered by a [`Pong`](Control::Pong) of the same number.
    Ping(u64),
    /// To the sink: the source has freed the guest's memory. The last message.
    Freed,
    /// To the sink, which is ready: the guest is to run there. From here on the source never runs it by itself again.
    Go,
    /// To the source: the offer is taken.
    Accept,
    /// To the source: the offer is not taken.
    Refuse(Reason),
    /// To the source, after an accepted offer that resumes: what need not be sent again.
    Received {
        /// At most [`RUNS_PER_PART`] runs; none only in the last part.
        runs: Vec<GfnRange>,
        /// Whether more follows.
        part: Part,
    },
    /// To the source: state and missing pages are noted, and the guest could run.
    Ready,
    /// To the source: the guest runs at the sink.
    Running,
    /// To the source: the guest has ended, and needs no page any more. The source may free its own.
    Ended,
    /// To the source: all pages are there. The source may free its own.
    Complete(Digest),
    /// To the source: the sink gives up.
    Failed(Reason),
    /// To the source: the answer to a [`Ping`](Control::Ping).
    Pong(u64),
}

impl Control {
    /// What kind of frame it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Control::Offer(_) => Kind::Offer,
            Control::State { .. } => Kind::State,
            Control::SwitchOver { .. } => Kind::SwitchOver,
            Control::AllSent(_) => Kind::AllSent,
            Control::Cancel(_) => Kind::Cancel,
            Control::Ping(_) => Kind::Ping,
            Control::Freed => Kind::Freed,
            Control::Go => Kind::Go,
            Control::Accept => Kind::Accept,
            Control::Refuse(_) => Kind::Refuse,
            Control::Received { .. } => Kind::Received,
            Control::Ready => Kind::Ready,
            Control::Ended => Kind::Ended,
            Control::Running => Kind::Running,
            Control::Complete(_) => Kind::Complete,
            Control::Failed(_) => Kind::Failed,
            Control::Pong(_) => Kind::Pong,
        }
    }

    /// The lane that it goes over.
    pub const fn lane(&self) -> Lane {
        if self.kind().belongs_to(Lane::ControlToSink) {
            Lane::ControlToSink
        } else {
            Lane::ControlToSource
        }
    }

    /// Whether more of the message follows.
    pub const fn part(&self) -> Part {
        match self {
            Control::State { part, .. }
            | Control::SwitchOver { part, .. }
            | Control::Received { part, .. } => *part,
            _ => Part::Last,
        }
    }

    /// Puts it behind `out`, as a whole frame.
    ///
    /// # Errors
    /// What the other side would refuse: a limit that is exceeded, runs out of order. `out` is as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let flags = match self {
            Control::State { part, .. }
            | Control::SwitchOver { part, .. }
            | Control::Received { part, .. } => flags(*part),
            _ => 0,
        };
        frame::put(self.kind(), flags, out, |out| {
            match self {
                Control::Offer(offer) => offer.put(out)?,
                Control::State { bytes, part } => {
                    not_empty(self.kind(), bytes.len(), *part)?;
                    out.extend(bytes);
                }
                Control::SwitchOver { fence, missing, part } => {
                    not_empty(self.kind(), missing.len(), *part)?;
                    check_order(missing)?;
                    out.extend(fence.to_le_bytes());
                    put_runs(missing, out);
                }
                Control::Received { runs, part } => {
                    not_empty(self.kind(), runs.len(), *part)?;
                    check_order(runs)?;
                    put_runs(runs, out);
                }
                Control::AllSent(digest) | Control::Complete(digest) => {
                    out.extend(digest.sum().to_le_bytes());
                    out.extend(digest.pages().to_le_bytes());
                }
                Control::Cancel(reason) | Control::Refuse(reason) | Control::Failed(reason) => {
                    out.extend(reason.as_str().as_bytes());
                }
                Control::Ping(number) | Control::Pong(number) => out.extend(number.to_le_bytes()),
                Control::Freed
                | Control::Go
                | Control::Accept
                | Control::Ready
                | Control::Running
                | Control::Ended => {}
            }
            Ok(())
        })
    }

    /// From a whole frame that came over `lane`.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn decode(bytes: &[u8], lane: Lane) -> Result<Control, WireError> {
        let (header, body) = frame::split(bytes, lane)?;
        Control::from_checked(&header, body)
    }

    /// From the body of a frame whose header has been read.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn from_body(header: &FrameHeader, body: &[u8]) -> Result<Control, WireError> {
        header.check(body)?;
        Control::from_checked(header, body)
    }

    fn from_checked(header: &FrameHeader, body: &[u8]) -> Result<Control, WireError> {
        let kind = header.kind();
        let part = if header.flags() & LAST == 0 { Part::More } else { Part::Last };
        let mut fields = Fields::new(kind.name(), body);
        Ok(match kind {
            Kind::Offer => Control::Offer(Offer::take(fields)?),
            Kind::State => {
                not_empty(kind, body.len(), part)?;
                Control::State { bytes: body.to_vec(), part }
            }
            Kind::SwitchOver => {
                let fence = fields.u64()?;
                let missing = fields.remaining_runs()?;
                not_empty(kind, missing.len(), part)?;
                Control::SwitchOver { fence, missing, part }
            }
            Kind::Received => {
                let runs = fields.remaining_runs()?;
                not_empty(kind, runs.len(), part)?;
                Control::Received { runs, part }
            }
            Kind::AllSent => Control::AllSent(digest(fields)?),
            Kind::Complete => Control::Complete(digest(fields)?),
            Kind::Cancel => Control::Cancel(Reason::decode(body)?),
            Kind::Refuse => Control::Refuse(Reason::decode(body)?),
            Kind::Failed => Control::Failed(Reason::decode(body)?),
            Kind::Ping => Control::Ping(number(fields)?),
            Kind::Pong => Control::Pong(number(fields)?),
            // Their limit is zero, and the header has been held to it.
            Kind::Freed => Control::Freed,
            Kind::Go => Control::Go,
            Kind::Accept => Control::Accept,
            Kind::Ready => Control::Ready,
            Kind::Ended => Control::Ended,
            Kind::Running => Control::Running,
            Kind::Request | Kind::Pages | Kind::Fence => {
                return Err(WireError::WrongLane { kind, lane: header.lane() });
            }
        })
    }
}

impl Offer {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        self.check_counts(self.ranges.len(), self.description.len())?;
        check_order(&self.ranges)?;
        out.extend([
            self.mode as u8,
            self.encoding as u8,
            self.bulk_streams,
            u8::from(self.resumes),
        ]);
        out.extend((self.ranges.len() as u32).to_le_bytes());
        out.extend((self.description.len() as u32).to_le_bytes());
        out.extend([0; 4]);
        put_runs(&self.ranges, out);
        out.extend(&self.description);
        Ok(())
    }

    fn take(mut fields: Fields<'_>) -> Result<Offer, WireError> {
        let value =
            |field, value: u8| WireError::Value { what: "Offer", field, value: value.into() };
        let mode = match fields.u8()? {
            0 => Mode::PreCopy,
            1 => Mode::PostCopy,
            2 => Mode::Hybrid,
            other => return Err(value("mode", other)),
        };
        let encoding = fields.u8()?;
        let encoding = Encoding::from_byte(encoding).ok_or_else(|| value("encoding", encoding))?;
        let bulk_streams = fields.u8()?;
        let resumes = match fields.u8()? {
            0 => false,
            1 => true,
            other => return Err(value("mark of one that resumes", other)),
        };
        let (ranges, description) = (fields.u32()? as usize, fields.u32()? as usize);
        fields.reserved::<4>()?;
        let mut offer = Offer {
            description: Vec::new(),
            ranges: Vec::new(),
            mode,
            encoding,
            bulk_streams,
            resumes,
        };
        offer.check_counts(ranges, description)?;
        offer.ranges = fields.runs(ranges)?;
        offer.description = fields.last(description)?.to_vec();
        Ok(offer)
    }

    fn check_counts(&self, ranges: usize, description: usize) -> Result<(), WireError> {
        let what = "Offer";
        if ranges == 0 || ranges > MOST_RANGES {
            return Err(WireError::Value { what, field: "number of ranges", value: ranges as u64 });
        }
        if description > MOST_DESCRIPTION {
            let (length, limit) = (description as u64, MOST_DESCRIPTION as u64);
            return Err(WireError::TooLong { what: "description", length, limit });
        }
        if self.bulk_streams == 0 || self.bulk_streams > MOST_BULK_STREAMS {
            let value = self.bulk_streams.into();
            return Err(WireError::Value { what, field: "number of bulk streams", value });
        }
        Ok(())
    }
}

/// A part that more parts follow has something in it, so that parts come to an end.
fn not_empty(kind: Kind, length: usize, part: Part) -> Result<(), WireError> {
    if length == 0 && part == Part::More { Err(WireError::Parts(kind)) } else { Ok(()) }
}

const fn flags(part: Part) -> u8 {
    match part {
        Part::More => 0,
        Part::Last => LAST,
    }
}

fn digest(mut fields: Fields<'_>) -> Result<Digest, WireError> {
    let digest = Digest::from_parts(fields.u128()?, fields.u64()?);
    fields.end()?;
    Ok(digest)
}

fn number(mut fields: Fields<'_>) -> Result<u64, WireError> {
    let number = fields.u64()?;
    fields.end()?;
    Ok(number)
}

const _: () = assert!(RUNS_PER_PART * RUN_BYTES <= 1 << 20 && STATE_PART <= 1 << 20);
