//! The examples of `docs/wire.md` are what the codec writes.

use std::collections::BTreeMap;

use super::samples::Message;
use super::*;
use crate::addr::{Gfn, GfnRange};

const PAGE: &str = include_str!("../../../docs/wire.md");

/// The examples by name: blocks of hexadecimal bytes behind a line `example: NAME`, comments from `#` on left out.
fn examples() -> BTreeMap<&'static str, Vec<u8>> {
    let blocks = PAGE.split("```").skip(1).step_by(2);
    let examples = blocks.filter_map(|block| block.strip_prefix("text\nexample: "));
    let example = |block: &'static str| {
        let (name, lines) = block.split_once('\n').unwrap();
        let bytes = lines.lines().flat_map(|line| {
            let bytes = line.split('#').next().unwrap().split_whitespace();
            bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap())
        });
        (name, bytes.collect())
    };
    examples.map(example).collect()
}

/// What the page says that the examples are.
fn expected() -> Vec<(&'static str, Message)> {
    let run = |start, frames| GfnRange::new(Gfn::new(start), frames).unwrap();
    let mut requested = PagesHeader::new(Gfn::new(0x1234), Purpose::Requested);
    requested.push_page(&[0xab; PAGE_BYTES]).unwrap();
    let mut bulk = PagesHeader::new(Gfn::new(0x200), Purpose::Bulk);
    bulk.push_page(&[0; PAGE_BYTES]).unwrap();
    bulk.push_page(&[1; PAGE_BYTES]).unwrap();
    bulk.push_page(&[2; PAGE_BYTES]).unwrap();
    bulk.set_payload(Encoding::Zstd, 0x25).unwrap();
    let digest = requested.digest();
    let session = Session::new(std::array::from_fn(|at| at as u8));
    let versions = Versions::new(1, 1).unwrap();
    vec![
        ("Hello", Message::Hello(Hello { versions, role: Role::Bulk(2), session })),
        ("Welcome", Message::Welcome(Welcome::Chosen(1))),
        ("Refusal", Message::Welcome(Welcome::Refused(Refusal::Busy, Reason::new("later")))),
        (
            "Offer",
            Message::Control(Control::Offer(Offer {
                description: b"vm".to_vec(),
                ranges: vec![run(0, 0x800)],
                mode: Mode::Hybrid,
                encoding: Encoding::Lz4,
                bulk_streams: 2,
                resumes: false,
            })),
        ),
        ("Accept", Message::Control(Control::Accept)),
        ("State", Message::Control(Control::State { bytes: vec![1, 2, 3], part: Part::Last })),
        (
            "SwitchOver",
            Message::Control(Control::SwitchOver {
                fence: 4,
                missing: vec![run(0x10, 2), run(0x20, 1)],
                part: Part::Last,
            }),
        ),
        (
            "Received",
            Message::Control(Control::Received { runs: vec![run(0, 0x10)], part: Part::More }),
        ),
        ("Ping", Message::Control(Control::Ping(7))),
        ("Failed", Message::Control(Control::Failed(Reason::new("no memory")))),
        ("AllSent", Message::Control(Control::AllSent(digest))),
        ("Request", Message::Request(Request { gfn: Gfn::new(0x1234) })),
        ("Pages of the urgent stream", Message::Pages(requested)),
        ("Pages of a bulk stream", Message::Pages(bulk)),
        ("Fence", Message::Fence(4)),
    ]
}

#[test]
fn the_examples_of_the_page_are_what_is_written_and_read() {
    let examples = examples();
    let expected = expected();
    for (name, message) in &expected {
        let hex: Vec<String> = message.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        let written = hex.chunks(16).map(|line| line.join(" ")).collect::<Vec<_>>().join("\n");
        let example = examples.get(name).cloned().unwrap_or_default();
        assert_eq!(example, message.encode(), "docs/wire.md has no example: {name}\n{written}\n");
        assert_eq!(Message::decode(&example, message.place()).as_ref(), Ok(message));
    }
    assert_eq!(examples.len(), expected.len(), "every example is looked at");
}

/// The table of kinds, with their codes and limits.
#[test]
fn the_table_of_kinds_is_the_codecs() {
    for kind in Kind::ALL {
        let row = format!("| `{:#04x}` | `{kind}` | {} |", kind as u8, kind.limit());
        assert!(PAGE.contains(&row), "docs/wire.md has no row {row}");
    }
    let zeroes = format!("`{ZERO_PAGE_CHECKSUM:#018x}`");
    assert!(PAGE.contains(&zeroes), "docs/wire.md does not have {zeroes}");
}
