//! A snapshot that is there, with those that it builds on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guest_mm::image::{Layers, ReadError, Sums, page_sum};

use crate::state::{MachineState, StateError};

use super::manifest::{Manifest, bad};
use super::{CONFIG, MEMORY, OWN, PAGE, STATE, SUMS, SnapshotError, failed};

/// Snapshots that build on one another at most: each page names its own by a byte.
const LONGEST_CHAIN: usize = 250;
/// Pages that are read at once.
const BATCH: u64 = 512;

/// A snapshot, looked at: all but its memory, and the checksums of that, is known to be as it was written.
#[derive(Debug)]
pub struct Snapshot {
    folder: PathBuf,
    manifest: Manifest,
    state: MachineState,
    sums: Sums,
    /// The files of memory: its own, that of its base, and so on; and for each page which of them has it.
    files: Vec<PathBuf>,
    of: Vec<u8>,
}

impl Snapshot {
    /// The snapshot in `folder`: versions, checksums of all but memory, and what it builds on are checked.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn open(folder: &Path) -> Result<Snapshot, SnapshotError> {
        let folder = std::path::absolute(folder).map_err(failed(folder, "its path"))?;
        let manifest = Manifest::read(&folder)?;
        let state = manifest.contents(&folder, STATE)?;
        let state =
            MachineState::from_bytes(&state).map_err(|source| bad(&folder, STATE, source))?;
        let sums = manifest.sums(&folder)?;
        let (files, of) = layers(&folder, &manifest)?;
        Ok(Snapshot { folder, manifest, state, sums, files, of })
    }

    /// Its folder, from the root on.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What belongs to it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// All but memory.
    pub fn state(&self) -> &MachineState {
        &self.state
    }

    /// Whether it is the snapshot in `folder`, or needs that.
    pub(super) fn builds_on(&self, folder: &Path) -> bool {
        let same = |file: &PathBuf| {
            let there = file.parent().and_then(|folder| folder.canonicalize().ok());
            there.is_some() && there == folder.canonicalize().ok()
        };
        self.files.iter().any(same)
    }

    /// The checksum of each page of the file of memory.
    ///
    /// # Errors
    /// [`SnapshotError`]: they are not what was written.
    pub(super) fn sums(&self) -> Result<Vec<u64>, SnapshotError> {
        self.sums.all().map_err(|error| self.without_sums(&error))
    }

    fn sum(&self, page: u64) -> Result<u64, SnapshotError> {
        // There is one for each page.
        Ok(self.sums.of(page).map_err(|error| self.without_sums(&error))?.unwrap_or(0))
    }

    fn without_sums(&self, error: &ReadError) -> SnapshotError {
        bad(&self.folder, SUMS, StateError::Damaged(error.to_string()))
    }

    /// The config that the machine came from, once it is known to be what was written: its name.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn config(&self) -> Result<PathBuf, SnapshotError> {
        self.manifest.contents(&self.folder, CONFIG)?;
        Ok(self.folder.join(CONFIG))
    }

    /// Its memory as an image that checks each page as it is read.
    pub fn image(&self) -> Layers {
        let (files, of, sums) = (self.files.clone(), self.of.clone(), self.sums.clone());
        Layers { files, of, sums, alone: false }
    }

    /// Calls `see` with every run of pages that are not all zeroes, by its guest-physical address, once it is known to be what was
    /// written. Runs come in the order of the ranges.
    ///
    /// # Errors
    /// [`SnapshotError`], or what `see` says.
    pub fn for_each_run<E: From<SnapshotError>>(
        &self,
        mut see: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let open = |path: &PathBuf| {
            File::open(path).map_err(failed(&self.folder, &format!("{}", path.display())))
        };
        let files: Vec<File> = self.files.iter().map(open).collect::<Result<_, _>>()?;
        let mut bytes = Vec::new();
        for range in &self.manifest.ranges {
            let (first, end) = (range.first_page(), range.first_page() + range.bytes / PAGE);
            let mut page = first;
            while page < end {
                let run = self.run(page, end.min(page + BATCH))?;
                if run == 0 {
                    page += 1;
                    continue;
                }
                bytes.resize((run * PAGE) as usize, 0);
                let layer = self.layer(page);
                files[layer].read_exact_at(&mut bytes, page * PAGE).map_err(failed(
                    &self.folder,
                    &format!("page {page} of {} cannot be read", self.files[layer].display()),
                ))?;
                for (page, bytes) in (page..).zip(bytes.chunks(PAGE as usize)) {
                    if page_sum(bytes) != self.sum(page)? {
                        let what = format!("page {page} has another checksum");
                        let file = self.files[layer].display().to_string();
                        return Err(bad(&self.folder, &file, StateError::Damaged(what)).into());
                    }
                }
                see(range.start + (page - first) * PAGE, &bytes)?;
                page += run;
            }
        }
        Ok(())
    }

    /// The pages of the range at `start` that are all zeroes, by their guest-physical addresses.
    ///
    /// # Errors
    /// [`SnapshotError`]: their checksums are not what was written.
    pub fn zero_pages(&self, start: u64) -> Result<Vec<u64>, SnapshotError> {
        let mut zero = Vec::new();
        for range in self.manifest.ranges.iter().filter(|range| range.start == start) {
            for page in 0..range.bytes / PAGE {
                if self.sum(range.first_page() + page)? == 0 {
                    zero.push(range.start + page * PAGE);
                }
            }
        }
        Ok(zero)
    }

    /// Pages from `page` to `end` that lie in the same file and are not all zeroes.
    fn run(&self, page: u64, end: u64) -> Result<u64, SnapshotError> {
        let (layer, mut next) = (self.layer(page), page);
        while next < end && self.layer(next) == layer && self.sum(next)? != 0 {
            next += 1;
        }
        Ok(next - page)
    }

    fn layer(&self, page: u64) -> usize {
        self.of.get(page as usize).copied().unwrap_or(0).into()
    }
}

/// The files of memory of the snapshot in `folder` and of those that it builds on, and which has each page.
fn layers(folder: &Path, top: &Manifest) -> Result<(Vec<PathBuf>, Vec<u8>), SnapshotError> {
    let mut files = vec![folder.join(MEMORY)];
    if top.base.is_none() {
        return Ok((files, Vec::new()));
    }
    let pages = top.file_pages() as usize;
    // A page that nobody has found yet.
    const NOWHERE: u8 = u8::MAX;
    let mut of = vec![NOWHERE; pages];
    let (mut folder, mut manifest) = (folder.to_owned(), top.clone());
    loop {
        let layer = files.len() as u8 - 1;
        let Some(base) = manifest.base.clone() else {
            of.iter_mut().filter(|of| **of == NOWHERE).for_each(|of| *of = layer);
            return Ok((files, of));
        };
        let own = manifest.contents(&folder, OWN)?;
        let has = |page: usize| own.get(page / 8).is_some_and(|byte| byte >> (page % 8) & 1 != 0);
        for (page, of) in of.iter_mut().enumerate() {
            if *of == NOWHERE && has(page) {
                *of = layer;
            }
        }
        let wrong = |why: String| SnapshotError::Base {
            folder: folder.clone(),
            base: base.folder.clone(),
            why,
        };
        let below = Manifest::read(&base.folder)
            .map_err(|error| wrong(format!("cannot be used: {error}")))?;
        if below.id != base.id {
            return Err(wrong(
                "has been replaced since: only the snapshot that it was taken over will do".into(),
            ));
        }
        if below.ranges != top.ranges {
            return Err(wrong("is of a machine with other memory".into()));
        }
        if files.len() == LONGEST_CHAIN {
            return Err(wrong(format!("is the end of more than {LONGEST_CHAIN} snapshots")));
        }
        files.push(base.folder.join(MEMORY));
        (folder, manifest) = (base.folder, below);
    }
}
