//! A new snapshot: written beside its place, made to last, then put there by one rename. Whatever goes wrong before that leaves
//! what was there as it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guest_mm::image::{Sums, page_sum};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::state::checksum;

use super::manifest::{Base, FileRange, Manifest};
use super::{
    CONFIG, MANIFEST, MEMORY, OWN, PAGE, PARTS, STATE, SUMS, Snapshot, SnapshotError, failed,
};

/// Pages that are written at once: a block.
const BATCH: usize = 512;

/// How far it is: pages that were looked at, and all. False ends it.
pub type Progress<'p> = dyn FnMut(u64, u64) -> bool + 'p;

/// A snapshot that is being written.
#[derive(Debug)]
pub struct Writer {
    /// Where it goes, and where it is until then.
    folder: PathBuf,
    beside: Beside,
    memory: File,
    ranges: Vec<FileRange>,
    base: Option<Snapshot>,
    sums: Vec<u64>,
    /// A bit for each page of the file that lies here.
    own: Vec<u8>,
    pages: u64,
}

/// A folder that goes with this, unless it has become the snapshot. Locked: another that writes there would find it.
#[derive(Debug)]
struct Beside {
    path: PathBuf,
    _lock: File,
    keep: bool,
}

/// A snapshot that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// What tells it from every other.
    pub id: String,
    /// Pages of memory that were written.
    pub pages: u64,
}

impl Writer {
    /// Begins one that is going to be in `folder`, of memory that lies in the file as `ranges` say; only of what has changed since
    /// `base`, if there is one.
    ///
    /// # Errors
    /// [`SnapshotError`]: what is in `folder` is no snapshot, or nothing can be written beside it.
    pub fn new(
        folder: &Path,
        ranges: Vec<FileRange>,
        base: Option<Snapshot>,
    ) -> Result<Writer, SnapshotError> {
        if fs::symlink_metadata(folder).is_ok() && Manifest::read(folder).is_err() {
            // One that is damaged is one.
            let looks_like_one = folder.join(MANIFEST).is_file();
            let is_empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
            if !looks_like_one && !is_empty {
                return Err(SnapshotError::Occupied(folder.to_owned()));
            }
        }
        if base.as_ref().is_some_and(|base| base.builds_on(folder)) {
            return Err(SnapshotError::Needed(folder.to_owned()));
        }
        let beside = Beside::new(folder)?;
        let failed = |what| failed(folder, what);
        let memory =
            File::create_new(beside.path.join(MEMORY)).map_err(failed("memory cannot be made"))?;
        let manifest = Manifest {
            id: String::new(),
            machine: String::new(),
            ranges: ranges.clone(),
            pages: 0,
            files: BTreeMap::new(),
            base: None,
        };
        let pages = manifest.file_pages();
        memory.set_len(pages * PAGE).map_err(failed("its memory cannot be as large"))?;
        let sums = match &base {
            Some(base) => base.sums()?,
            None => vec![0; pages as usize],
        };
        let own = vec![0; if base.is_some() { pages.div_ceil(8) as usize } else { 0 }];
        Ok(Writer { folder: folder.to_owned(), beside, memory, ranges, base, sums, own, pages: 0 })
    }

    /// Writes memory: every page for which `wanted`, by its guest-physical address, as `read` gives it; false is a page of zeroes.
    /// What is not wanted is as in the base.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn memory(
        &mut self,
        wanted: impl Fn(u64) -> bool,
        mut read: impl FnMut(u64, &mut [u8]) -> bool,
        progress: &mut Progress<'_>,
    ) -> Result<(), SnapshotError> {
        let all: u64 = self.ranges.iter().map(|range| range.bytes / PAGE).sum();
        let mut looked = 0_u64;
        let mut batch = Batch::default();
        for range in self.ranges.clone() {
            for index in 0..range.bytes / PAGE {
                if looked.is_multiple_of(BATCH as u64) && !progress(looked, all) {
                    return Err(SnapshotError::Ended(self.folder.clone()));
                }
                looked += 1;
                let gpa = range.start + index * PAGE;
                if !wanted(gpa) {
                    continue;
                }
                let page = range.first_page() + index;
                batch.bytes.resize(batch.bytes.len() + PAGE as usize, 0);
                let start = batch.bytes.len() - PAGE as usize;
                let bytes = &mut batch.bytes[start..];
                let sum = if read(gpa, bytes) { page_sum(bytes) } else { 0 };
                self.sums[page as usize] = sum;
                if let Some(byte) = self.own.get_mut((page / 8) as usize) {
                    *byte |= 1 << (page % 8);
                }
                if sum == 0 {
                    batch.bytes.truncate(start);
                    self.put(&mut batch)?;
                    continue;
                }
                self.pages += 1;
                let follows = start > 0 && batch.first + (start as u64 / PAGE) == page;
                if start > 0 && !follows {
                    let own = batch.bytes.split_off(start);
                    self.put(&mut batch)?;
                    batch.bytes = own;
                }
                if start == 0 || !follows {
                    batch.first = page;
                }
                if batch.bytes.len() >= BATCH * PAGE as usize {
                    self.put(&mut batch)?;
                }
            }
        }
        self.put(&mut batch)?;
        progress(all, all);
        Ok(())
    }

    fn put(&self, batch: &mut Batch) -> Result<(), SnapshotError> {
        if !batch.bytes.is_empty() {
            self.memory
                .write_all_at(&batch.bytes, batch.first * PAGE)
                .map_err(failed(&self.folder, "its memory cannot be written"))?;
            batch.bytes.clear();
        }
        Ok(())
    }

    /// Writes the rest, and puts the whole into its place.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn finish(
        mut self,
        machine: &str,
        state: &[u8],
        config: &str,
    ) -> Result<Written, SnapshotError> {
        let sums: Vec<u8> = self.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let digests = Sums::digests(&self.sums);
        let parts: Vec<u8> = digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
        self.file(SUMS, &sums)?;
        let mut files = BTreeMap::new();
        let mut contents = vec![(STATE, state), (CONFIG, config.as_bytes()), (PARTS, &parts)];
        if self.base.is_some() {
            contents.push((OWN, &self.own));
        }
        for (name, bytes) in contents {
            self.file(name, bytes)?;
            files.insert(name.to_owned(), checksum(bytes));
        }
        let base = self
            .base
            .as_ref()
            .map(|base| Base { folder: base.folder().to_owned(), id: base.manifest().id.clone() });
        let id = new_id().map_err(failed(&self.folder, "no random number for its id"))?;
        let manifest = Manifest {
            id: id.clone(),
            machine: machine.to_owned(),
            ranges: self.ranges.clone(),
            pages: self.pages,
            files,
            base,
        };
        self.memory
            .sync_all()
            .map_err(failed(&self.folder, "its memory cannot be made to last"))?;
        // Last, so that a folder with a manifest has all that it names.
        self.file(MANIFEST, &manifest.to_bytes())?;
        sync_folder(&self.beside.path)
            .map_err(failed(&self.folder, "it cannot be made to last"))?;
        self.put_into_place()?;
        Ok(Written { id, pages: self.pages })
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<(), SnapshotError> {
        let write = || {
            let mut file = File::create_new(self.beside.path.join(name))?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(failed(&self.folder, &format!("its file {name} cannot be written")))
    }

    /// One rename; what was there before goes.
    fn put_into_place(&mut self) -> Result<(), SnapshotError> {
        let (from, to) = (&self.beside.path, &self.folder);
        let failed = |what| failed(to, what);
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => self.beside.keep = true,
            // What was there is beside then, and goes with it.
            Err(Errno::EXIST) => {
                let exchanged = renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE);
                let what = "it cannot be put in the place of the old one";
                exchanged.map_err(|errno| failed(what)(errno.into()))?;
            }
            Err(errno) => return Err(failed("it cannot be put into its place")(errno.into())),
        }
        sync_folder(&parent(to)).map_err(failed("its place cannot be made to last"))
    }
}

/// Pages that follow one another.
#[derive(Default)]
struct Batch {
    first: u64,
    bytes: Vec<u8>,
}

impl Beside {
    /// The folder for what is going to be in `folder`; one that was left by who was killed goes.
    fn new(folder: &Path) -> Result<Beside, SnapshotError> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = parent(folder).join(format!(".{name}.slat-new"));
        let failed = |what: &str| failed(folder, what);
        if path.exists() {
            // Who writes there holds the lock until the end.
            let left =
                File::open(&path).map_err(failed("what lies beside it cannot be looked at"))?;
            if flock(&left, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(SnapshotError::Busy(folder.to_owned()));
            }
            fs::remove_dir_all(&path)
                .map_err(failed("what was left beside it cannot be removed"))?;
        }
        fs::create_dir(&path).map_err(failed("no folder can be made beside it"))?;
        let lock = File::open(&path).map_err(failed("no folder can be made beside it"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Beside { path, _lock: lock, keep: false }),
            Err(_) => Err(SnapshotError::Busy(folder.to_owned())),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed is removed by the next.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn new_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}
