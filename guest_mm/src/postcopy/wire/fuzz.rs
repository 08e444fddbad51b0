//! No bytes panic the decoder, or make it take more memory than their kind may have. What it takes, it would have written so.
//!
//! Damage is sealed again by a checksum that is right: it stands for a peer that means it. `SLAT_LONG=1` tries fifty times as
//! much.

use proptest::collection::vec;
use proptest::prelude::*;

use super::checksum::body_checksum;
use super::samples::{LANES, Message, Place, message};
use super::*;

/// Values at which arithmetic goes wrong.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..0x1000_u64,
        Just(u64::MAX),
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..64_u32).prop_map(|bit| (1_u64 << bit).wrapping_neg()),
        (0..64_u64).prop_map(|less| (1 << 36) - less),
    ]
}

/// (position, value, bytes of it)
fn patch() -> impl Strategy<Value = (usize, u64, usize)> {
    (any::<usize>(), value(), 1..=8_usize)
}

fn apply(bytes: &mut [u8], patches: &[(usize, u64, usize)]) {
    for &(at, value, count) in patches {
        let at = at % bytes.len();
        let end = bytes.len().min(at + count);
        bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
    }
}

/// Makes the length and the checksum of `bytes` right again, as far as there is room for them.
fn seal(bytes: &mut [u8], place: Place) {
    match place {
        Place::Hello if bytes.len() == Hello::BYTES => {
            let sum = body_checksum([0; 8], &bytes[..32]);
            bytes[32..].copy_from_slice(&sum.to_le_bytes());
        }
        Place::Welcome if bytes.len() >= Welcome::FIXED => {
            let half = bytes[8..16].try_into().unwrap();
            let sum = body_checksum(half, &bytes[Welcome::FIXED..]);
            bytes[16..Welcome::FIXED].copy_from_slice(&sum.to_le_bytes());
        }
        Place::Lane(_) if bytes.len() >= FrameHeader::BYTES => {
            let length = bytes.len() - FrameHeader::BYTES;
            bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
            let half = bytes[..8].try_into().unwrap();
            let sum = body_checksum(half, &bytes[FrameHeader::BYTES..]);
            bytes[8..FrameHeader::BYTES].copy_from_slice(&sum.to_le_bytes());
        }
        _ => {}
    }
}

/// Decodes `bytes` wherever they may come; what is taken has one form only.
fn survive(bytes: &[u8]) {
    let lanes = LANES.map(Place::Lane);
    for place in lanes.into_iter().chain([Place::Hello, Place::Welcome]) {
        if let Ok(message) = Message::decode(bytes, place) {
            assert_eq!(message.encode(), bytes, "{message:?}");
            assert_eq!(message.place(), place);
        }
    }
}

fn cases() -> ProptestConfig {
    let cases = if std::env::var_os("SLAT_LONG").is_some() { 100_000 } else { 2000 };
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_bytes_are_a_message_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        survive(&bytes);
    }

    #[test]
    fn any_body_of_any_kind_is_a_message_or_refused(
        kind in prop::sample::select(&Kind::ALL[..]),
        flags in 0..4_u8,
        body in vec(any::<u8>(), 0..120),
    ) {
        let mut bytes = vec![0; FrameHeader::BYTES];
        bytes[..2].copy_from_slice(&[kind as u8, flags]);
        bytes.extend(body);
        seal(&mut bytes, Place::Lane(Lane::ControlToSink));
        survive(&bytes);
    }

    #[test]
    fn a_message_with_any_fields_is_a_message_or_refused(
        message in message(),
        patches in vec(patch(), 1..6),
    ) {
        let mut bytes = message.encode();
        apply(&mut bytes, &patches);
        survive(&bytes);
        seal(&mut bytes, message.place());
        survive(&bytes);
    }

    #[test]
    fn a_message_cut_or_lengthened_is_a_message_or_refused(
        message in message(),
        length in 0..2000_usize,
        fill in any::<u8>(),
    ) {
        let mut bytes = message.encode();
        bytes.resize(length % (2 * bytes.len()), fill);
        survive(&bytes);
        seal(&mut bytes, message.place());
        survive(&bytes);
    }

    #[test]
    fn messages_in_any_order_are_followed_or_refused(messages in vec(samples::control(), 0..20)) {
        let mut parts = Parts::new();
        for message in &messages {
            let _ = parts.follow(message);
        }
    }
}
