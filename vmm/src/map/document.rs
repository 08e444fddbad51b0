//! A memory map with what is needed to understand it elsewhere and later: versioned JSON.
//!
//! ```json
//! {"slat": 1, "kind": "memory-map", "machine": "touch.toml", "state": "finished", "taken_unix": 1767225600,
//!  "block_bytes": 2097152,
//!  "totals": {"blocks": 1, "bytes": {"ram": 2097152, "resident": 1048576, "small": 1048576, "scattered": 0,
//!             "huge": 0, "giant": 0, "missing": 0, "guard": 4096, "poison": 0, "returned": 0, "untouched": 1044480,
//!             "pinned": 0, "shared": 0, "image": 0}},
//!  "blocks": [{"gpa": 0, "pages": 512, "small": 256, "huge": 0, "giant": 0, "missing": 0, "guard": 1, "poison": 0,
//!              "returned": 0, "scattered": 0, "pinned": 0, "shared": 0, "image": 0}]}
//! ```
//!
//! `blocks` count 4 KiB pages. `totals` follow from them and are not read back. `configs/README.md` has the reference.

use std::time::{SystemTime, UNIX_EPOCH};

use guest_mm::map::{BlockMap, MemoryMap};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use super::counts::{Counts, Kind};
use super::{BLOCK, PAGE};

/// The version of the format, in its field `slat`.
pub const VERSION: u32 = 1;

/// What the field `kind` says.
const KIND: &str = "memory-map";

/// Whether the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It ran when the map was made.
    Running,
    /// It had ended.
    Finished,
}

/// A memory map of one machine at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct Document {
    slat: u32,
    kind: String,
    /// The machine's config, as it was named.
    pub machine: String,
    /// Whether it ran.
    pub state: State,
    /// When, in seconds since 1970.
    pub taken_unix: u64,
    block_bytes: u64,
    /// The sums over all blocks.
    #[serde(skip_deserializing)]
    pub totals: Totals,
    /// Every block that holds RAM, by address. No block has more pages of all kinds than it has pages.
    pub blocks: Vec<BlockMap>,
}

/// The sums over all blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Blocks that hold RAM.
    pub blocks: u64,
    /// Bytes by kind.
    pub bytes: KindBytes,
}

/// Bytes by kind: `ram` is the sum of `resident`, `missing`, `guard`, `poison`, `returned` and `untouched`, and `resident` that
/// of `small`, `huge` and `giant`; `scattered` and `shared` are among the `small`, `image` among the `small` and the `huge`, `pinned`
/// among the `resident`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "as in `BlockMap`")]
pub struct KindBytes {
    pub ram: u64,
    pub resident: u64,
    pub small: u64,
    pub scattered: u64,
    pub huge: u64,
    pub giant: u64,
    pub missing: u64,
    pub guard: u64,
    pub poison: u64,
    pub returned: u64,
    pub untouched: u64,
    pub pinned: u64,
    pub shared: u64,
    pub image: u64,
}

/// Why bytes are not a memory map. As the end of a sentence that names where they come from.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Not JSON at all.
    #[error("it is not JSON (line {line}, column {column})")]
    NotJson {
        /// Where that shows.
        line: usize,
        /// Where that shows.
        column: usize,
    },
    /// JSON that ends too early.
    #[error("it is empty or cut short: write it again with \"slat run --memory-map FILE\"")]
    Truncated,
    /// Some other JSON.
    #[error("it is JSON, but not a memory map ({0})")]
    Other(String),
    /// A memory map from another time.
    #[error("it is a memory map of version {0}, and this slat reads version {VERSION}")]
    Version(u64),
    /// A monitor that was asked for a map said no.
    #[error("the monitor said: {0}")]
    Refused(String),
    /// Blocks that cannot be.
    #[error("its block at {gpa:#x} {why}")]
    Block {
        /// Its address.
        gpa: u64,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Document {
    /// The map of `machine`, taken now.
    pub fn new(machine: String, state: State, map: MemoryMap) -> Document {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Document {
            slat: VERSION,
            kind: KIND.into(),
            machine,
            state,
            taken_unix: now.as_secs(),
            block_bytes: BLOCK,
            totals: Totals::of(&map.blocks),
            blocks: map.blocks,
        }
    }

    /// Reads what [`to_line`](Self::to_line) and [`to_lines`](Self::to_lines) write.
    ///
    /// # Errors
    /// [`MapError`]; whatever `bytes` are, what comes back is a map that can be shown.
    pub fn parse(bytes: &[u8]) -> Result<Document, MapError> {
        /// What every version has, and what an answer has instead.
        #[derive(Deserialize)]
        #[serde(expecting = "an object")]
        struct Head {
            slat: Option<u64>,
            error: Option<String>,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|e| MapError::from(&e))?;
        match head {
            Head { slat: None, .. } => return Err(MapError::Other("it has no \"slat\"".into())),
            Head { error: Some(error), .. } => return Err(MapError::Refused(one_line(&error))),
            Head { slat: Some(other), .. } if other != u64::from(VERSION) => {
                return Err(MapError::Version(other));
            }
            Head { .. } => {}
        }
        let mut document: Document =
            serde_json::from_slice(bytes).map_err(|e| MapError::from(&e))?;
        if document.kind != KIND {
            let kind = one_line(&document.kind);
            return Err(MapError::Other(format!("its kind is \"{kind}\", not \"{KIND}\"")));
        }
        if document.block_bytes != BLOCK {
            return Err(MapError::Other(format!("its \"block_bytes\" are not {BLOCK}")));
        }
        check(&document.blocks)?;
        document.totals = Totals::of(&document.blocks);
        Ok(document)
    }

    /// One line of JSON, its end included.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("keys are strings and no value can fail");
        line.push('\n');
        line
    }

    /// The same for people: a block a line.
    pub fn to_lines(&self) -> String {
        let head = Document {
            kind: self.kind.clone(),
            machine: self.machine.clone(),
            blocks: Vec::new(),
            ..*self
        };
        let head =
            serde_json::to_string_pretty(&head).expect("keys are strings and no value can fail");
        let mut text = head.strip_suffix("]\n}").expect("the blocks come last").to_owned();
        for (index, block) in self.blocks.iter().enumerate() {
            let block =
                serde_json::to_string(block).expect("keys are strings and no value can fail");
            text.push_str(if index == 0 { "\n    " } else { ",\n    " });
            text.push_str(&block);
        }
        text.push_str("\n  ]\n}\n");
        text
    }

    /// The pages of all blocks.
    pub fn counts(&self) -> Counts {
        Counts::sum(&self.blocks)
    }

    /// The machine's name without its folder.
    pub fn name(&self) -> &str {
        self.machine.rsplit('/').next().unwrap_or_default()
    }
}

impl Totals {
    fn of(blocks: &[BlockMap]) -> Totals {
        let counts = Counts::sum(blocks);
        let bytes = KindBytes {
            ram: counts.pages * PAGE,
            resident: counts.resident() * PAGE,
            small: counts.small * PAGE,
            scattered: counts.scattered * PAGE,
            huge: counts.huge * PAGE,
            giant: counts.bytes_of(Kind::Giant),
            missing: counts.bytes_of(Kind::Missing),
            guard: counts.bytes_of(Kind::Guard),
            poison: counts.bytes_of(Kind::Poison),
            returned: counts.bytes_of(Kind::Returned),
            untouched: counts.bytes_of(Kind::Untouched),
            pinned: counts.pinned * PAGE,
            shared: counts.bytes_of(Kind::Shared),
            image: counts.bytes_of(Kind::Image),
        };
        Totals { blocks: blocks.len() as u64, bytes }
    }
}

impl From<&serde_json::Error> for MapError {
    fn from(error: &serde_json::Error) -> MapError {
        match error.classify() {
            Category::Eof | Category::Io => MapError::Truncated,
            Category::Syntax => MapError::NotJson { line: error.line(), column: error.column() },
            Category::Data => MapError::Other(one_line(&error.to_string())),
        }
    }
}

/// Guest-physical addresses have at most 52 bits.
const GPA_END: u64 = 1 << 52;

/// What is shown relies on it.
fn check(blocks: &[BlockMap]) -> Result<(), MapError> {
    let mut next = 0;
    for block in blocks {
        let gpa = block.gpa;
        let bad = |why| Err(MapError::Block { gpa, why });
        if !gpa.is_multiple_of(BLOCK) || gpa >= GPA_END {
            return bad("does not start at a multiple of 2 MiB below 2^52");
        }
        if gpa < next {
            return bad("does not come behind the one before it");
        }
        next = gpa + BLOCK;
        let counts = Counts::from(block);
        if counts.pages == 0 || counts.pages > BLOCK / PAGE {
            return bad("does not have 1 to 512 pages");
        }
        if counts.known() > counts.pages {
            return bad("has more pages of all kinds than it has pages");
        }
        if counts.scattered > counts.small {
            return bad("has more scattered pages than small ones");
        }
        if counts.special_small() > counts.small {
            return bad("has more scattered, shared and image pages than it has memory for");
        }
        if counts.pinned > counts.resident() {
            return bad("has more pinned pages than it has memory");
        }
    }
    Ok(())
}

/// `text` on one line and cut to a bearable length: it comes from a file or a socket.
fn one_line(text: &str) -> String {
    text.chars().take(120).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::samples;
    use super::*;

    #[test]
    fn what_is_written_reads_back_the_same() {
        for document in [samples::mixed(), samples::document(Vec::new())] {
            assert_eq!(Document::parse(document.to_line().as_bytes()), Ok(document.clone()));
            assert_eq!(Document::parse(document.to_lines().as_bytes()), Ok(document.clone()));
            assert_eq!(document.to_line().lines().count(), 1);
        }
    }

    /// Maps of this version were written before anything could be pinned, shared or an image's.
    #[test]
    fn a_block_that_says_nothing_of_pins_and_sharing_has_none() {
        let plain = samples::document(samples::blocks(0, 3));
        let before = plain.to_line();
        let before = before.replace(",\"pinned\":0,\"shared\":0,\"image\":0", "");
        assert!(!before.contains("shared"), "{before}");
        assert_eq!(Document::parse(before.as_bytes()), Ok(plain));
    }

    #[test]
    fn shared_pages_and_those_of_images_have_totals_and_limits() {
        let mut blocks = samples::blocks(0, 3);
        (blocks[0].small, blocks[0].shared, blocks[0].image) = (100, 30, 20);
        (blocks[1].huge, blocks[1].image) = (512, 512);
        let document = samples::document(blocks.clone());
        let bytes = document.totals.bytes;
        assert_eq!((bytes.small, bytes.huge), (100 * PAGE, 512 * PAGE));
        assert_eq!((bytes.shared, bytes.image), (30 * PAGE, 532 * PAGE));
        assert_eq!(Document::parse(document.to_line().as_bytes()), Ok(document));
        blocks[0].scattered = 51;
        let error = Document::parse(samples::document(blocks).to_line().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("more scattered, shared and image pages"), "{error}");
    }

    #[test]
    fn totals_are_sums_in_bytes() {
        let bytes = samples::mixed().totals.bytes;
        assert_eq!(bytes.resident, bytes.small + bytes.huge + bytes.giant);
        let all = bytes.resident + bytes.missing + bytes.guard + bytes.poison;
        let all = all + bytes.returned + bytes.untouched;
        assert_eq!(bytes.ram, all);
        assert_eq!(bytes.guard, 4096);
    }

    #[test]
    fn what_is_no_map_is_refused_with_the_reason() {
        let good = samples::mixed().to_line();
        let cut = &good[..good.len() / 2];
        let version = good.replacen("\"slat\":1", "\"slat\":9", 1);
        let misplaced = good.replacen("\"gpa\":0", "\"gpa\":4096", 1);
        let backwards = good.replacen("\"gpa\":0", "\"gpa\":1073741824", 1);
        let overfull = good.replacen("\"guard\":1,", "\"guard\":513,", 1);
        let negative = good.replacen("\"guard\":1,", "\"guard\":-1,", 1);
        let pinned =
            good.replacen("\"scattered\":0,\"pinned\":0", "\"scattered\":0,\"pinned\":512", 1);
        let overflowing = good.replacen("\"guard\":1,", "\"guard\":4294967295,", 1);
        for (text, says) in [
            ("", "cut short"),
            (cut, "cut short"),
            ("hello", "not JSON"),
            ("[1, 2]", "not a memory map"),
            ("3", "not a memory map"),
            ("{}", "no \"slat\""),
            ("{\"slat\": 1}", "missing field"),
            ("{\"slat\": 1, \"error\": \"no\\nway\"}", "the monitor said: no way"),
            (&version, "version 9"),
            (&misplaced, "multiple of 2 MiB"),
            (&backwards, "behind the one before"),
            (&overfull, "more pages of all kinds"),
            (&pinned, "more pinned pages"),
            (&overflowing, "more pages of all kinds"),
            (&negative, "not a memory map"),
        ] {
            let error = Document::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says) && error.lines().count() == 1, "{text:.60}: {error}");
        }
        // Deeper than any stack: the parser has a limit of its own.
        assert!(Document::parse("[".repeat(1 << 20).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_change_of_a_byte_is_refused_or_can_be_shown(at: prop::sample::Index, byte: u8) {
            let mut bytes = samples::mixed().to_line().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(document) = Document::parse(&bytes) {
                super::super::text(&document, super::super::Style::PLAIN);
                super::super::picture(&document);
            }
        }
    }
}
