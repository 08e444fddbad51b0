//! What belongs to a snapshot.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use guest_mm::addr::{GfnRange, Gpa, PageSize};
use serde::{Deserialize, Serialize};

use crate::state::{Fingerprint, StateError, checksum, seal, unseal};

use super::{MANIFEST, PAGE, SnapshotError, VERSION, failed};

/// What the header calls it.
const KIND: &str = "snapshot";

/// The first file that is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What tells it from every other.
    pub id: String,
    /// The config of the machine, as it was named.
    pub machine: String,
    /// Where guest memory is in the file of memory, in ascending order.
    pub ranges: Vec<FileRange>,
    /// Pages of memory that lie here.
    pub pages: u64,
    /// Other files that are read whole, with their checksums.
    pub files: BTreeMap<String, String>,
    /// The snapshot that has the pages which do not lie here.
    pub base: Option<Base>,
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRange {
    /// Its first guest-physical address, a multiple of 2 MiB.
    pub start: u64,
    /// Its length, a multiple of 4 KiB.
    pub bytes: u64,
    /// Where it begins in the file: a multiple of 2 MiB.
    pub offset: u64,
}

/// Another snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its folder.
    pub folder: PathBuf,
    /// Its id.
    pub id: String,
}

/// How the memory of a machine lies in a file: RAM, and behind it device memory that the guest has pages of its own in.
pub fn layout(fingerprint: &Fingerprint) -> Vec<FileRange> {
    let private = fingerprint.memory.iter().filter(|memory| memory.private);
    let extents = fingerprint.ram.iter().copied().chain(private.map(|memory| memory.at));
    let mut offset = 0;
    let place = |extent: crate::state::Extent| {
        let range = FileRange { start: extent.start, bytes: extent.bytes, offset };
        offset = (offset + extent.bytes).next_multiple_of(PageSize::Size2M.bytes());
        range
    };
    extents.map(place).collect()
}

impl FileRange {
    /// Its guest frames.
    pub fn frames(&self) -> Option<GfnRange> {
        GfnRange::from_bytes(Gpa::new(self.start), self.bytes).ok()
    }

    /// The page of the file at its start.
    pub fn first_page(&self) -> u64 {
        self.offset / PAGE
    }
}

impl Manifest {
    /// Pages of the file of memory.
    pub fn file_pages(&self) -> u64 {
        let end = |range: &FileRange| range.offset + range.bytes;
        let bytes = self.ranges.iter().map(end).max().unwrap_or(0);
        bytes.next_multiple_of(PageSize::Size2M.bytes()) / PAGE
    }

    /// It as bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let body = serde_json::to_string(self).expect("keys are strings and no value can fail");
        seal(KIND, VERSION, &body)
    }

    /// That of the snapshot in `folder`.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn read(folder: &Path) -> Result<Manifest, SnapshotError> {
        let none = |why: &str| SnapshotError::None { folder: folder.to_owned(), why: why.into() };
        let bytes = fs::read(folder.join(MANIFEST)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => none("it has no manifest"),
            std::io::ErrorKind::NotADirectory => none("it is no folder"),
            _ => failed(folder, "its manifest cannot be read")(error),
        })?;
        let bad = |source| bad(folder, MANIFEST, source);
        let body = unseal(KIND, VERSION, &bytes).map_err(bad)?;
        let manifest: Manifest = serde_json::from_slice(body)
            .map_err(|error| bad(StateError::Damaged(error.to_string())))?;
        let block = PageSize::Size2M.bytes();
        let sound = |range: &FileRange| {
            let placed = range.start.is_multiple_of(block) && range.offset.is_multiple_of(block);
            placed && range.bytes.is_multiple_of(PAGE) && range.frames().is_some()
        };
        match manifest.ranges.iter().all(sound) {
            true => Ok(manifest),
            false => Err(bad(StateError::Damaged("a range of memory is none".into()))),
        }
    }

    /// The contents of `name`, a file of the snapshot in `folder`, as they were written.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub(super) fn contents(&self, folder: &Path, name: &str) -> Result<Vec<u8>, SnapshotError> {
        let damaged = |what: &str| bad(folder, name, StateError::Damaged(what.into()));
        let sum = self.files.get(name).ok_or_else(|| damaged("the manifest does not name it"))?;
        let bytes = fs::read(folder.join(name))
            .map_err(failed(folder, &format!("its file {name} cannot be read")))?;
        match checksum(&bytes) == *sum {
            true => Ok(bytes),
            false => Err(damaged("its checksum is another")),
        }
    }
}

pub(super) fn bad(folder: &Path, file: &str, source: StateError) -> SnapshotError {
    SnapshotError::Bad { folder: folder.to_owned(), file: file.to_owned(), source }
}
