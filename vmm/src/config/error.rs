//! What can be wrong with a config, said in one sentence.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Bytes;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "origin", rename_all = "lowercase")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The config file, lines and columns counted from 1, columns in characters.
    File {
        /// The line of the key.
        line: u32,
        /// The column of the key.
        column: u32,
    },
    /// A `--set` on the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { line, .. } => write!(f, "line {line}"),
            Origin::Flag => f.write_str("--set"),
        }
    }
}

/// A config that cannot be used. `Display` is one sentence on one line, whatever the file's name or the value holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The config file, as it was named.
    pub file: PathBuf,
    /// Where the culprit stands; [`Origin::Default`] when the file as a whole is to blame.
    pub origin: Origin,
    /// The key, `table.name` or `family.name.key`, where one is to blame.
    pub key: Option<String>,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file is not there.
    #[error("there is no such file")]
    NoSuchFile,
    /// The file is something else: a directory, a FIFO, a device.
    #[error("this is {0}, and a config must be a regular file")]
    NotRegular(&'static str),
    /// The file cannot be opened or read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// The file is larger than any config.
    #[error("it is larger than {0}, too large for a config")]
    TooLarge(Bytes),
    /// The file is not text.
    #[error("byte {offset} is not UTF-8 text")]
    NotUtf8 {
        /// Bytes from the start of the file to the first that does not belong.
        offset: usize,
    },
    /// The file is not TOML.
    #[error("column {column}: this is not TOML: {reason}")]
    Syntax {
        /// Counted from 1, in characters.
        column: u32,
        /// What the parser says.
        reason: String,
    },
    /// A key stands in the file twice.
    #[error("is set twice: remove one of the two")]
    Duplicate,
    /// No such table or key.
    #[error("is unknown{}: {allowed}", Hint(.hint))]
    Unknown {
        /// The closest name there is.
        hint: Option<String>,
        /// What may stand there.
        allowed: String,
    },
    /// A `--set` that is no assignment.
    #[error("\"{0}\" is not of the form table.key=value")]
    NotAnAssignment(String),
    /// A value of the wrong type or outside its limits.
    #[error("is {value}: {reason}")]
    BadValue {
        /// As it was written, cut short if long.
        value: String,
        /// What is allowed, and what to do.
        reason: String,
    },
    /// A table for a device with no fitting name.
    #[error("has a device named {name}: {reason}")]
    BadName {
        /// As it was written, cut short if long.
        name: String,
        /// What is allowed.
        reason: String,
    },
    /// More devices than there may be.
    #[error("is one too many: {0}")]
    TooMany(String),
    /// A key that has no default.
    #[error("is missing: {0}")]
    Missing(&'static str),
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::Default => write!(f, "{}: ", shown_path(&self.file))?,
            Origin::File { line, .. } => write!(f, "{}:{line}: ", shown_path(&self.file))?,
            Origin::Flag => f.write_str("--set: ")?,
        }
        if let Some(key) = &self.key {
            write!(f, "{key} ")?;
        }
        write!(f, "{}", self.problem)
    }
}

struct Hint<'a>(&'a Option<String>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, " (did you mean {name}?)"),
            None => Ok(()),
        }
    }
}

/// Values longer than this are cut in messages, in characters.
const LONGEST_SHOWN: usize = 48;

/// `text` on one line and cut to a bearable length.
pub(super) fn shown(text: &str) -> String {
    let mut out: String =
        text.chars().take(LONGEST_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LONGEST_SHOWN).is_some() {
        out.push('…');
    }
    out
}

/// `text` in quotes, escaped, cut to a bearable length.
pub(super) fn quoted(text: &str) -> String {
    let head: String = text.chars().take(LONGEST_SHOWN).collect();
    let more = if head.len() < text.len() { "…" } else { "" };
    format!("{head:?}{more}")
}

/// `path` on one line.
pub(super) fn shown_path(path: &Path) -> String {
    path.display().to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_it_quotes() {
        let error = ConfigError {
            file: "a\nb.toml".into(),
            origin: Origin::File { line: 7, column: 1 },
            key: Some("memory.size".into()),
            problem: Problem::BadValue {
                value: quoted("6\n3K"),
                reason: "it must be a multiple of 4 KiB (try \"64K\")".into(),
            },
        };
        assert_eq!(
            error.to_string(),
            "a?b.toml:7: memory.size is \"6\\n3K\": it must be a multiple of 4 KiB (try \"64K\")"
        );
        assert_eq!(shown("[1,\n2]"), "[1, 2]");
        assert!(shown(&"x".repeat(1000)).chars().count() <= LONGEST_SHOWN + 1);
        assert!(quoted(&"x".repeat(1000)).chars().count() <= LONGEST_SHOWN + 3);
    }
}
