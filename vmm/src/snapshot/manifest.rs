//! What belongs to a snapshot.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use guest_mm::addr::{GfnRange, Gpa, PageSize};
use guest_mm::image::Sums;
use serde::{Deserialize, Serialize};

use crate::state::{Fingerprint, StateError, checksum, seal, unseal};

use super::{MANIFEST, MEMORY, PAGE, PARTS, SUMS, SnapshotError, VERSION, failed};

/// What the header calls it.
const KIND: &str = "snapshot";
/// A manifest's length at most: it names a range and a file a line.
const MANIFEST_BYTES: u64 = 1 << 20;
/// The length at most of other files that are read whole: a thousand vCPUs have states of 20 MiB, and the bits of 4 TiB are 128 MiB.
const CONTENTS_BYTES: u64 = 256 << 20;
const BLOCK_PAGES: u64 = PageSize::Size2M.frames();

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

    /// Whether there can be such a range, in a file that is no larger than guest memory can be.
    fn is_sound(&self) -> bool {
        let block = PageSize::Size2M.bytes();
        let placed = self.start.is_multiple_of(block) && self.offset.is_multiple_of(block);
        let end = self.offset.checked_add(self.bytes);
        placed
            && self.bytes.is_multiple_of(PAGE)
            && self.frames().is_some()
            && end.is_some_and(|end| end / PAGE < u64::from(u32::MAX) - BLOCK_PAGES)
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
        let bytes = read_at_most(&folder.join(MANIFEST), MANIFEST_BYTES).map_err(|error| {
            match error.kind() {
                ErrorKind::NotFound => none("it has no manifest"),
                ErrorKind::NotADirectory => none("it is no folder"),
                _ => failed(folder, "its manifest cannot be read")(error),
            }
        })?;
        let bad = |source| bad(folder, MANIFEST, source);
        let body = unseal(KIND, VERSION, &bytes).map_err(bad)?;
        let manifest: Manifest = serde_json::from_slice(body)
            .map_err(|error| bad(StateError::Damaged(error.to_string())))?;
        let damaged = |what: &str| bad(StateError::Damaged(what.into()));
        if !manifest.ranges.iter().all(FileRange::is_sound) {
            return Err(damaged("a range of memory is none"));
        }
        let behind = |pair: &[FileRange]| pair[0].offset + pair[0].bytes <= pair[1].offset;
        match manifest.ranges.windows(2).all(behind) {
            true => Ok(manifest),
            false => Err(damaged("ranges of memory lie over one another in the file")),
        }
    }

    /// The contents of `name`, a file of the snapshot in `folder`, as they were written.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub(super) fn contents(&self, folder: &Path, name: &str) -> Result<Vec<u8>, SnapshotError> {
        let damaged = |what: &str| bad(folder, name, StateError::Damaged(what.into()));
        let sum = self.files.get(name).ok_or_else(|| damaged("the manifest does not name it"))?;
        let bytes = read_at_most(&folder.join(name), CONTENTS_BYTES)
            .map_err(failed(folder, &format!("its file {name} cannot be read")))?;
        match checksum(&bytes) == *sum {
            true => Ok(bytes),
            false => Err(damaged("its checksum is another")),
        }
    }

    /// The checksums of the pages, each part of which is checked when it is read.
    ///
    /// # Errors
    /// [`SnapshotError`]: among others, that the file of memory has another size than `ranges` need.
    pub(super) fn sums(&self, folder: &Path) -> Result<Sums, SnapshotError> {
        let damaged = |name: &str, what| bad(folder, name, StateError::Damaged(what));
        let needs = self.file_pages() * PAGE;
        let memory = fs::metadata(folder.join(MEMORY));
        let has = memory.map_err(failed(folder, "its file memory cannot be read"))?.len();
        if has != needs {
            let what = format!("{has} bytes are there, and {needs} are needed");
            return Err(damaged(MEMORY, what));
        }
        let parts = self.contents(folder, PARTS)?;
        let (words, rest) = parts.as_chunks();
        if words.len() as u64 != self.file_pages() / BLOCK_PAGES || !rest.is_empty() {
            return Err(damaged(
                PARTS,
                format!("{} bytes are not one digest a block", parts.len()),
            ));
        }
        let digests = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        Sums::in_file(&folder.join(SUMS), digests).map_err(|error| match error.kind() {
            ErrorKind::InvalidData => damaged(SUMS, error.to_string()),
            _ => failed(folder, "its file sums cannot be read")(error),
        })
    }
}

/// The contents of the file at `path`, if they are not more than `limit`.
fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::with_capacity(file.metadata()?.len().min(limit) as usize);
    file.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        false => Ok(bytes),
        true => Err(io::Error::other(format!("it has more than {limit} bytes"))),
    }
}

pub(super) fn bad(folder: &Path, file: &str, source: StateError) -> SnapshotError {
    SnapshotError::Bad { folder: folder.to_owned(), file: file.to_owned(), source }
}
