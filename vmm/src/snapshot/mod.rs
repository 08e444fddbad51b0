//! A machine in a folder: its state, its memory, the config that it came from. `vmm/docs/snapshot.md` is the format.
//!
//! ```text
//!   manifest.rs   what belongs to it, with checksums        write.rs   a new one, beside the old, then in its place
//!   read.rs       one that is there, with those that it builds on        working_set.rs   what is read first
//! ```
//!
//! This module knows folders and pages, and no running machine.

#[cfg(test)]
mod fuzz;
mod manifest;
mod read;
#[cfg(test)]
mod tests;
mod working_set;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use crate::state::StateError;

pub use manifest::{Base, FileRange, Manifest, layout};
pub use read::Snapshot;
pub use working_set::WorkingSet;
pub use write::{Progress, Writer, Written};

/// The form of a snapshot that is written and read.
pub const VERSION: u32 = 2;

/// The files of a snapshot.
const MANIFEST: &str = "manifest";
const CONFIG: &str = "config.toml";
const STATE: &str = "state";
const MEMORY: &str = "memory";
const SUMS: &str = "sums";
const PARTS: &str = "parts";
const OWN: &str = "own";
const WORKING_SET: &str = "working-set";

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot lies there.
    #[error("{} is no snapshot: {why}", .folder.display())]
    None {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file of it is not what was written.
    #[error("the snapshot {} cannot be used: its file {file}: {source}", .folder.display())]
    Bad {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: String,
        /// What is wrong.
        source: StateError,
    },
    /// What it builds on is not what it was.
    #[error("the snapshot {} builds on {}, which {why}", .folder.display(), .base.display())]
    Base {
        /// The folder.
        folder: PathBuf,
        /// The other.
        base: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Something else lies there.
    #[error("{} is there already and is no snapshot: remove it, or name another folder", .0.display())]
    Occupied(PathBuf),
    /// The new one would replace what it builds on.
    #[error("{} is what the new snapshot builds on: name another folder", .0.display())]
    Needed(PathBuf),
    /// Somebody else writes there.
    #[error("another snapshot is being written to {}: wait for it, or name another folder", .0.display())]
    Busy(PathBuf),
    /// The machine ended meanwhile.
    #[error("the machine has ended, and the snapshot {} was not finished", .0.display())]
    Ended(PathBuf),
    /// The system.
    #[error("the snapshot {}: {what}: {source}", .folder.display())]
    System {
        /// The folder.
        folder: PathBuf,
        /// What was tried.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

/// Names what failed on the way to `folder`.
fn failed(folder: &Path, what: &str) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
    let (folder, what) = (folder.to_owned(), what.to_owned());
    move |source| SnapshotError::System { folder, what, source }
}
