//! The codec takes what it writes, and nothing else.

use proptest::prelude::*;

use super::samples::{LANES, Message, Place, message};
use super::*;
use crate::addr::{Gfn, GfnRange};
use crate::geometry::TREE_FRAMES;

fn run(start: u64, frames: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), frames).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn every_message_reads_back_as_it_was_written(message in message()) {
        let bytes = message.encode();
        prop_assert_eq!(Message::decode(&bytes, message.place()), Ok(message));
    }

    #[test]
    fn a_message_that_is_cut_or_goes_on_is_refused(message in message()) {
        let mut bytes = message.encode();
        for length in 0..bytes.len() {
            prop_assert!(Message::decode(&bytes[..length], message.place()).is_err());
        }
        bytes.push(0);
        prop_assert!(Message::decode(&bytes, message.place()).is_err());
    }

    #[test]
    fn a_message_with_one_wrong_bit_is_refused(message in message()) {
        let bytes = message.encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Message::decode(&damaged, message.place()).is_err(), "bit {}", bit);
        }
    }

    #[test]
    fn a_message_is_taken_on_its_own_lane_only(message in message()) {
        let bytes = message.encode();
        for lane in LANES.map(Place::Lane) {
            let taken = Message::decode(&bytes, lane).is_ok();
            prop_assert_eq!(taken, lane == message.place());
        }
    }

    #[test]
    fn a_digest_does_not_depend_on_order_or_on_streams(
        pages in prop::collection::vec((0..TREE_FRAMES, any::<u64>()), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let sum = |pages: &[(u64, u64)]| {
            let mut digest = Digest::new();
            pages.iter().for_each(|&(gfn, sum)| digest.add(Gfn::new(gfn), sum));
            digest
        };
        let mut reversed = pages.clone();
        reversed.reverse();
        prop_assert_eq!(sum(&pages), sum(&reversed));
        let (one, other) = pages.split_at(cut.index(pages.len()));
        let mut merged = sum(one);
        merged.merge(sum(other));
        prop_assert_eq!(sum(&pages), merged);
        let (gfn, last) = pages[pages.len() - 1];
        merged.remove(Gfn::new(gfn), last);
        prop_assert_eq!(sum(&pages[..pages.len() - 1]), merged);
        // One page in place of another, and two that have changed places, are seen.
        merged.add(Gfn::new(gfn), !last);
        prop_assert_ne!(sum(&pages), merged);
    }
}

#[test]
fn pages_that_have_changed_places_have_another_digest() {
    let sum = |first, second| {
        let mut digest = Digest::new();
        digest.add(Gfn::new(1), first);
        digest.add(Gfn::new(2), second);
        digest
    };
    assert_ne!(sum(7, 8), sum(8, 7));
}

#[test]
fn the_checksum_of_zeroes_is_what_it_is() {
    let mut page = [0; PAGE_BYTES];
    assert_eq!(page_checksum(&page), ZERO_PAGE_CHECKSUM);
    assert!(is_zero(&page));
    for at in [0, 63, 64, 4095] {
        page[at] = 1;
        assert!(!is_zero(&page), "{at}");
        page[at] = 0;
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_by_the_header_alone() {
    for kind in Kind::ALL {
        let lane = LANES.into_iter().find(|&lane| kind.belongs_to(lane)).unwrap();
        for length in [kind.limit() as u32 + 1, u32::MAX, 1 << 31] {
            let mut header = [0; FrameHeader::BYTES];
            // Pages of the urgent stream say why they come.
            header[..2].copy_from_slice(&[kind as u8, u8::from(kind == Kind::Pages)]);
            header[4..8].copy_from_slice(&length.to_le_bytes());
            let refused = FrameHeader::decode(&header, lane);
            assert!(matches!(refused, Err(WireError::TooLong { .. })), "{kind} {refused:?}");
        }
        assert!(kind.limit() <= (1 << 20) + 2048, "{kind}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let mut header = [0; FrameHeader::BYTES];
    let decode = |header: &[u8; 16], lane| FrameHeader::decode(header, lane).unwrap_err();
    assert_eq!(decode(&header, Lane::BulkToSink), WireError::UnknownKind(0));
    header[0] = Kind::Request as u8;
    let (kind, lane) = (Kind::Request, Lane::BulkToSink);
    assert_eq!(decode(&header, lane), WireError::WrongLane { kind, lane });
    header[1] = 2;
    let lane = Lane::UrgentToSource;
    assert_eq!(decode(&header, lane), WireError::Flags { kind, flags: 2, lane });
    header[1] = 0;
    header[3] = 1;
    assert_eq!(decode(&header, lane), WireError::Reserved("frame"));

    let mut out = vec![1];
    let runs = |runs: Vec<GfnRange>| Control::Received { runs, part: Part::Last };
    let overlap = runs(vec![run(1, 4), run(4, 1)]);
    assert_eq!(overlap.encode(&mut out), Err(WireError::Order(Gfn::new(4))));
    assert_eq!(out, [1], "what fails leaves nothing behind");
    let many = runs((0..=RUNS_PER_PART as u64).map(|at| run(2 * at, 1)).collect());
    assert!(matches!(many.encode(&mut out), Err(WireError::TooLong { .. })));
    let empty = Control::State { bytes: Vec::new(), part: Part::More };
    assert_eq!(empty.encode(&mut out), Err(WireError::Parts(Kind::State)));
    let mut header = PagesHeader::new(Gfn::new(511), Purpose::Bulk);
    assert!(matches!(header.encode(&mut out), Err(WireError::Value { .. })));
    header.push(1).unwrap();
    let crosses = WireError::CrossesBlock { first: Gfn::new(511), count: 2 };
    assert_eq!(header.push_zero(), Err(crosses));
    for (encoding, bytes) in [
        (Encoding::Raw, 4095),
        (Encoding::Raw, 4097),
        (Encoding::Lz4, 0),
        (Encoding::Zstd, 4096),
        (Encoding::Zstd, usize::MAX),
    ] {
        assert!(matches!(header.set_payload(encoding, bytes), Err(WireError::Payload { .. })));
    }
    assert_eq!(out, [1]);
}

#[test]
fn an_offer_keeps_its_limits() {
    let offer = Offer {
        description: Vec::new(),
        ranges: vec![run(0, 1)],
        mode: Mode::Hybrid,
        encoding: Encoding::Raw,
        bulk_streams: 1,
        resumes: false,
    };
    let most = Offer {
        description: vec![7; MOST_DESCRIPTION],
        ranges: (0..MOST_RANGES as u64).map(|at| run(3 * at, 2)).collect(),
        bulk_streams: MOST_BULK_STREAMS,
        ..offer.clone()
    };
    let mut out = Vec::new();
    let message = Control::Offer(most.clone());
    message.encode(&mut out).unwrap();
    assert_eq!(out.len(), FrameHeader::BYTES + Kind::Offer.limit());
    assert_eq!(Control::decode(&out, Lane::ControlToSink), Ok(message));
    let ranges = (0..=MOST_RANGES as u64).map(|at| run(3 * at, 2)).collect();
    for wrong in [
        Offer { description: vec![7; MOST_DESCRIPTION + 1], ..offer.clone() },
        Offer { ranges: Vec::new(), ..offer.clone() },
        Offer { ranges, ..offer.clone() },
        Offer { ranges: vec![run(1, 1), run(0, 1)], ..offer.clone() },
        Offer { bulk_streams: 0, ..offer.clone() },
        Offer { bulk_streams: MOST_BULK_STREAMS + 1, ..offer },
    ] {
        assert!(Control::Offer(wrong).encode(&mut out).is_err());
    }
}

#[test]
fn long_messages_go_in_parts_and_hold_together() {
    let state = vec![5; STATE_PART * 2 + 1];
    let parts: Vec<Control> = state_parts(&state).collect();
    assert_eq!(
        parts.iter().map(Control::part).collect::<Vec<_>>(),
        [Part::More, Part::More, Part::Last]
    );
    let missing: Vec<GfnRange> = (0..RUNS_PER_PART as u64 + 1).map(|at| run(at * 2, 1)).collect();
    let switch =
        runs_in_parts(&missing, |missing, part| Control::SwitchOver { fence: 3, missing, part });
    let mut follow = Parts::new();
    let mut whole = Vec::new();
    for message in parts.into_iter().chain(switch) {
        follow.follow(&message).unwrap();
        follow.follow(&Control::Ping(1)).unwrap();
        if let Control::SwitchOver { missing, .. } = message {
            whole.extend(missing);
        }
    }
    assert_eq!(whole, missing);
    assert_eq!(state_parts(&[]).collect::<Vec<_>>().len(), 1, "nothing is said in one part");
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let state = |length| Control::State { bytes: vec![0; length], part: Part::More };
    let received = |start| Control::Received { runs: vec![run(start, 2)], part: Part::More };
    let switch =
        |fence| Control::SwitchOver { fence, missing: vec![run(fence, 1)], part: Part::More };
    let follow = |first: &Control, second: &Control| {
        let mut parts = Parts::new();
        parts.follow(first).unwrap();
        parts.follow(second)
    };
    assert_eq!(follow(&state(1), &Control::Freed), Err(WireError::Parts(Kind::Freed)));
    assert_eq!(follow(&state(1), &switch(1)), Err(WireError::Parts(Kind::SwitchOver)));
    assert_eq!(follow(&switch(1), &switch(2)), Err(WireError::Parts(Kind::SwitchOver)));
    assert_eq!(follow(&received(5), &received(6)), Err(WireError::Order(Gfn::new(6))));
    assert_eq!(follow(&received(5), &received(7)), Ok(()));
    assert_eq!(follow(&state(1), &Control::Cancel(Reason::new("enough"))), Ok(()));
    let mut parts = Parts::new();
    for _ in 0..MOST_STATE / STATE_PART {
        parts.follow(&state(STATE_PART)).unwrap();
    }
    assert!(matches!(parts.follow(&state(1)), Err(WireError::TooLong { .. })));
}

#[test]
fn the_highest_common_version_is_chosen_or_both_ranges_are_named() {
    let versions = |lowest, highest| Versions::new(lowest, highest).unwrap();
    let hello = |versions| Hello { versions, role: Role::Control, session: Session::new([0; 16]) };
    for (source, sink, chosen) in [
        (versions(1, 1), versions(1, 1), 1),
        (versions(1, 5), versions(2, 3), 3),
        (versions(2, 3), versions(3, 9), 3),
    ] {
        assert_eq!(Welcome::to(&hello(source), sink), Welcome::Chosen(chosen));
    }
    for (source, sink) in [(versions(1, 2), versions(3, 4)), (versions(7, 9), versions(1, 6))] {
        let Welcome::Refused(Refusal::Version, reason) = Welcome::to(&hello(source), sink) else {
            panic!("{source} and {sink} have nothing in common");
        };
        let reason = reason.to_string();
        assert!(reason.contains(&source.to_string()) && reason.contains(&sink.to_string()));
    }
    assert_eq!((Versions::new(0, 1), Versions::new(3, 2)), (None, None));
}

#[test]
fn a_reason_is_cut_at_a_character_and_shown_without_control_characters() {
    let long = Reason::new("ä".repeat(MOST_REASON));
    assert_eq!(long.as_str().len(), MOST_REASON);
    let odd = Reason::new(format!("x{}", "ä".repeat(MOST_REASON)));
    assert_eq!(odd.as_str().len(), MOST_REASON - 1);
    assert_eq!(Reason::new("a\x1b[2Jb").to_string(), "a\\u{1b}[2Jb");
}

#[test]
fn runs_of_pages_are_those_of_the_map() {
    let mut header = PagesHeader::new(Gfn::new(512), Purpose::Bulk);
    for zero in [true, false, false, true, true, false] {
        if zero { header.push_zero() } else { header.push(9) }.unwrap();
    }
    assert_eq!(header.nonzero_runs().collect::<Vec<_>>(), [1..3, 5..6]);
    assert_eq!(header.zero_runs().collect::<Vec<_>>(), [0..1, 3..5]);
    let pages: Vec<u64> = header.nonzero_pages().map(Gfn::as_u64).collect();
    assert_eq!(pages, [513, 514, 517]);
    let sums: Vec<u64> = header.sums().map(|(_, sum)| sum).collect();
    let zero = ZERO_PAGE_CHECKSUM;
    assert_eq!(sums, [zero, 9, 9, zero, zero, 9]);
    assert_eq!(header.digest().pages(), 6);
}
