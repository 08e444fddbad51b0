//! Messages of every kind, for tests.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::addr::{Gfn, GfnRange};
use crate::geometry::TREE_FRAMES;

/// Anything that the codec knows.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Control(Control),
    Pages(PagesHeader),
    Request(Request),
    Fence(u64),
}

/// What is decoded, and where it came.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Place {
    Hello,
    Welcome,
    Lane(Lane),
}

pub(super) const LANES: [Lane; 5] = [
    Lane::ControlToSink,
    Lane::ControlToSource,
    Lane::UrgentToSink,
    Lane::UrgentToSource,
    Lane::BulkToSink,
];

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Message::Hello(hello) => out.extend(hello.encode()),
            Message::Welcome(welcome) => out.extend(welcome.encode()),
            Message::Control(message) => message.encode(&mut out).unwrap(),
            Message::Pages(header) => header.encode(&mut out).unwrap(),
            Message::Request(request) => out.extend(request.encode()),
            Message::Fence(number) => put_fence(*number, &mut out),
        }
        out
    }

    pub(super) fn place(&self) -> Place {
        match self {
            Message::Hello(_) => Place::Hello,
            Message::Welcome(_) => Place::Welcome,
            Message::Control(message) => Place::Lane(message.lane()),
            Message::Pages(header) => Place::Lane(header.purpose().lane()),
            Message::Request(_) => Place::Lane(Lane::UrgentToSource),
            Message::Fence(_) => Place::Lane(Lane::BulkToSink),
        }
    }

    /// What `bytes` are at `place`.
    pub(super) fn decode(bytes: &[u8], place: Place) -> Result<Message, WireError> {
        let lane = match place {
            Place::Hello => {
                let length = bytes.len() as u64;
                let whole = bytes.try_into();
                let bytes = whole.map_err(|_| WireError::Length { what: "Hello", length })?;
                return Hello::decode(bytes).map(Message::Hello);
            }
            Place::Welcome => return Welcome::decode(bytes).map(Message::Welcome),
            Place::Lane(lane) => lane,
        };
        let (header, body) = frame::split(bytes, lane)?;
        match header.kind() {
            Kind::Pages => PagesHeader::decode(bytes, lane).map(Message::Pages),
            Kind::Fence => fence(&header, body).map(Message::Fence),
            Kind::Request => Request::decode(bytes).map(Message::Request),
            _ => Control::decode(bytes, lane).map(Message::Control),
        }
    }
}

pub(super) fn runs(most: usize) -> impl Strategy<Value = Vec<GfnRange>> {
    vec((0_u64..3, 1_u64..5), 0..=most).prop_map(|gaps| {
        let mut next = 0;
        let run = |(gap, frames)| {
            let start = next + gap;
            next = start + frames;
            GfnRange::new(Gfn::new(start), frames).unwrap()
        };
        gaps.into_iter().map(run).collect()
    })
}

fn reason() -> impl Strategy<Value = Reason> {
    ".{0,60}".prop_map(Reason::new)
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![Just(Part::More), Just(Part::Last)]
}

/// The last part may be empty; no other.
fn part_of(length: usize, part: Part) -> Part {
    if length == 0 { Part::Last } else { part }
}

fn encoding() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Raw), Just(Encoding::Lz4), Just(Encoding::Zstd)]
}

fn offer() -> impl Strategy<Value = Control> {
    let mode = prop_oneof![Just(Mode::PreCopy), Just(Mode::PostCopy), Just(Mode::Hybrid)];
    let ranges = runs(6).prop_filter("an offer has RAM", |ranges| !ranges.is_empty());
    let streams = 1..=MOST_BULK_STREAMS;
    (vec(any::<u8>(), 0..40), ranges, mode, encoding(), streams, any::<bool>()).prop_map(
        |(description, ranges, mode, encoding, bulk_streams, resumes)| {
            Control::Offer(Offer { description, ranges, mode, encoding, bulk_streams, resumes })
        },
    )
}

pub(super) fn control() -> impl Strategy<Value = Control> {
    let digest = (any::<u128>(), any::<u64>()).prop_map(|(sum, n)| Digest::from_parts(sum, n));
    prop_oneof![
        offer(),
        (vec(any::<u8>(), 0..40), part()).prop_map(|(bytes, part)| {
            Control::State { part: part_of(bytes.len(), part), bytes }
        }),
        (any::<u64>(), runs(5), part()).prop_map(|(fence, missing, part)| {
            Control::SwitchOver { fence, part: part_of(missing.len(), part), missing }
        }),
        (runs(5), part()).prop_map(|(runs, part)| {
            Control::Received { part: part_of(runs.len(), part), runs }
        }),
        digest.clone().prop_map(Control::AllSent),
        digest.prop_map(Control::Complete),
        reason().prop_map(Control::Cancel),
        reason().prop_map(Control::Refuse),
        reason().prop_map(Control::Failed),
        any::<u64>().prop_map(Control::Ping),
        any::<u64>().prop_map(Control::Pong),
        Just(Control::Freed),
        Just(Control::Accept),
        Just(Control::Running),
    ]
}

/// Pages whose checksums are anything; none for one of zeroes.
pub(super) fn pages() -> impl Strategy<Value = PagesHeader> {
    let purpose =
        prop_oneof![Just(Purpose::Bulk), Just(Purpose::Requested), Just(Purpose::Prefetched)];
    let first = prop_oneof![0..2048_u64, TREE_FRAMES - 600..TREE_FRAMES];
    let packed = any::<prop::sample::Index>();
    (first, purpose, vec(any::<Option<u64>>(), 1..200), encoding(), packed).prop_map(
        |(first, purpose, sums, encoding, packed)| {
            let mut header = PagesHeader::new(Gfn::new(first), purpose);
            for sum in sums {
                // Behind the end of the block there are no more.
                let _ = match sum {
                    Some(sum) => header.push(sum),
                    None => header.push_zero(),
                };
            }
            if encoding != Encoding::Raw && header.raw_bytes() != 0 {
                let bytes = 1 + packed.index(header.raw_bytes() - 1);
                header.set_payload(encoding, bytes).unwrap();
            }
            header
        },
    )
}

pub(super) fn message() -> impl Strategy<Value = Message> {
    let role = prop_oneof![
        Just(Role::Control),
        Just(Role::Urgent),
        (0..MOST_BULK_STREAMS).prop_map(Role::Bulk)
    ];
    let hello =
        (1..9_u16, 0..9_u16, role, any::<[u8; 16]>()).prop_map(|(lowest, more, role, session)| {
            Hello {
                versions: Versions::new(lowest, lowest + more).unwrap(),
                role,
                session: Session::new(session),
            }
        });
    let refusal = prop_oneof![
        Just(Refusal::Version),
        Just(Refusal::Busy),
        Just(Refusal::Session),
        Just(Refusal::Other)
    ];
    prop_oneof![
        1 => hello.prop_map(Message::Hello),
        1 => (1..u16::MAX).prop_map(|version| Message::Welcome(Welcome::Chosen(version))),
        1 => (refusal, reason()).prop_map(|(why, text)| Message::Welcome(Welcome::Refused(why, text))),
        8 => control().prop_map(Message::Control),
        4 => pages().prop_map(Message::Pages),
        1 => (0..TREE_FRAMES).prop_map(|gfn| Message::Request(Request { gfn: Gfn::new(gfn) })),
        1 => any::<u64>().prop_map(Message::Fence),
    ]
}
