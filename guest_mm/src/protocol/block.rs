//! The protocol blocks, as they stand at the top of the modules that run the protocols.

/// Makes the list of one of paths.
macro_rules! sources {
    ($($path:literal)*) => {
        &[$(($path, include_str!(concat!("../", $path)))),*]
    };
}

/// Every module that begins with a block, and its text.
const SOURCES: &[(&str, &str)] = sources! {
    "collapse/mod.rs"
    "collapse/retract.rs"
    "fault/image.rs"
    "fault/mod.rs"
    "pin/mod.rs"
    "place/mod.rs"
    "pool/pins.rs"
    "share/mod.rs"
    "table/cursor.rs"
    "table/epoch.rs"
    "table/reclaim.rs"
    "wait.rs"
};

/// Where a block begins and ends.
const OPENS: &str = "//! ```text";
const CLOSES: &str = "//! ```";

/// A protocol block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// The source that it stands in, below `guest_mm/src`.
    pub source: &'static str,
    /// Its lines, without the comment signs.
    pub text: String,
}

/// The block of the protocol `name`, if there is one.
pub fn block(name: &str) -> Option<Block> {
    SOURCES.iter().find_map(|&(source, text)| {
        let text = blocks(text).find(|block| block.split_whitespace().next() == Some(name))?;
        Some(Block { source, text })
    })
}

/// The blocks in the comment that `source` begins with.
fn blocks(source: &str) -> impl Iterator<Item = String> {
    let mut lines = source.lines().take_while(|line| line.starts_with("//!"));
    std::iter::from_fn(move || {
        lines.find(|&line| line == OPENS)?;
        let inside = lines.by_ref().take_while(|&line| line != CLOSES);
        let plain = inside.map(|line| line.strip_prefix("//! ").unwrap_or_default());
        Some(plain.fold(String::new(), |text, line| text + line + "\n"))
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::Step;
    use super::*;

    #[test]
    fn a_block_is_found_by_its_name_and_comes_without_comment_signs() {
        for name in ["pin-vs-collapse", "continue-vs-zap", "dedup-vs-pin", "pin-vs-reuse"] {
            let Block { source, text } = block(name).unwrap_or_else(|| panic!("no block {name}"));
            assert!(text.starts_with(name) && text.contains("\nInvariant "), "{source}: {text}");
            assert!(!text.contains("//!") && !text.contains("```"), "{source}: {text}");
        }
        assert_eq!(block("pin-vs-collapse").map(|block| block.source), Some("pin/mod.rs"));
        // The second of its module.
        assert_eq!(block("dedup-vs-pin").map(|block| block.source), Some("share/mod.rs"));
        assert_eq!(block("pin"), None);
        assert_eq!(block(""), None);
    }

    #[test]
    fn each_source_holds_a_block() {
        for (source, text) in SOURCES {
            assert!(blocks(text).next().is_some(), "{source}");
        }
    }

    #[test]
    fn every_step_stands_in_a_block() {
        let all: Vec<String> = SOURCES.iter().flat_map(|&(_, text)| blocks(text)).collect();
        let words = |block: &String| -> Vec<String> {
            let word = |c: char| !c.is_ascii_alphanumeric();
            block.split(word).map(str::to_owned).collect()
        };
        let words: Vec<String> = all.iter().flat_map(words).collect();
        for step in Step::ALL {
            assert!(words.contains(&step.label()), "{step:?} stands in no protocol block");
        }
    }
}
