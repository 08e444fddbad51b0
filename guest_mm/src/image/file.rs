//! The file of an image: raw memory, page after page. It is read, never mapped, so nothing that becomes of it can
//! raise a signal here; and it is looked at after each read, so that a page is what the file held when
//! it was opened, or an error.
//!
//! # What is noticed
//! Another size, and another time of the last write. The kernel stamps that time before the bytes change, so a read
//! that saw new bytes sees the new time. From Linux 6.13 on, tmpfs, ext4, XFS and Btrfs give a write that follows a
//! look at the time one of its own, however soon it follows.
//!
//! Not the time of the last change (`ctime`): unlinking, renaming and linking change it too, and to put a new template
//! in the place of the old by a rename is what an operator should do while guests run.
//!
//! # Known holes
//! * Where times are coarse (older kernels, other file systems), a write of the same size within some 4 ms of the
//!   opening is not noticed.
//! * Nor is a writer that sets the time back, or one that had the file mapped and its pages dirty before it was opened.
#![allow(unsafe_code, reason = "reads into a frame of the pool")]

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use crate::addr::{FrameNo, PageSize};
use crate::geometry::FRAME_BYTES;
use crate::pool::{BackingKind, Pool};

/// Why a file is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened, or asked for its size.
    #[error(
        "the image {} cannot be opened: {source}; it must be a file of raw memory that this user may read",
        path.display()
    )]
    Open {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no regular file.
    #[error("the image {} is {kind}; an image is a regular file of raw memory", path.display())]
    NotAFile {
        /// Which.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It does not consist of pages.
    #[error(
        "the image {} has {bytes} bytes, which is not a multiple of 4096 above 0: it is cut off, or no raw memory; \
         write it again",
        path.display()
    )]
    Ragged {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The pool's pages are larger than those of an image.
    #[error(
        "the image {} cannot be used: a {kind} pool has no pages of 4 KiB; let the pool lie on a memfd or tmpfs",
        path.display()
    )]
    Granule {
        /// Which.
        path: PathBuf,
        /// What the pool lies on.
        kind: BackingKind,
    },
    /// There is no file, or a page in none.
    #[error("an image needs files that have all of its pages")]
    Nothing,
    /// Its layers differ in size.
    #[error("the image {} has {has} pages where {pages} are needed: it is a layer of another", path.display())]
    OtherSize {
        /// Which.
        path: PathBuf,
        /// Its pages.
        has: u64,
        /// Those of the first.
        pages: u64,
    },
    /// It has more pages than a pool can have frames.
    #[error("the image {} has {bytes} bytes, which is more than guest memory can be", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// Why a page could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is not what it was when it was opened.
    #[error(
        "the image {} was changed while a guest lies over it ({what}): pages of it that were not loaded yet are lost; \
         put a new image in its place by a rename, never write to one in use",
        path.display()
    )]
    Changed {
        /// Which.
        path: PathBuf,
        /// How it was noticed.
        what: String,
    },
    /// It does not hold what was put there.
    #[error("page {page} of the image {} is damaged: its checksum is another; restore from another copy", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// The page.
        page: u64,
    },
    /// The checksums that it is checked by are not to be had.
    #[error("the checksums {} of the pages from {page} on cannot be read: {cause}; restore from another copy", path.display())]
    NoSums {
        /// Their file.
        path: PathBuf,
        /// The first of the pages.
        page: u64,
        /// Why.
        cause: String,
    },
    /// The system does not give it.
    #[error("page {page} of the image {} cannot be read: {cause}", path.display())]
    Failed {
        /// Which.
        path: PathBuf,
        /// The page.
        page: u64,
        /// What the system said.
        cause: String,
    },
}

/// Pages of a read that any disk's read-ahead has room for: 128 KiB, its default.
const AT_ONCE: u64 = 32;

/// One file of raw memory.
#[derive(Debug)]
pub(super) struct Layer {
    file: File,
    path: PathBuf,
    stamp: Stamp,
}

/// What changes with a file's contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    bytes: u64,
    /// Seconds and nanoseconds of the last write.
    written: (i64, i64),
}

impl Layer {
    /// The file at `path`, for frames of `pool`.
    ///
    /// # Errors
    /// [`ImageError`]: the file is no image.
    pub(super) fn open(pool: &Pool, path: &Path) -> Result<Layer, ImageError> {
        if pool.granule() > PageSize::Size4K {
            return Err(ImageError::Granule { path: path.to_owned(), kind: pool.kind() });
        }
        let failed = |source| ImageError::Open { path: path.to_owned(), source };
        let check = |metadata: &Metadata| match kind(metadata.file_type()) {
            None => Ok(()),
            Some(kind) => Err(ImageError::NotAFile { path: path.to_owned(), kind }),
        };
        // First, because to open a device is to do something with it; and again, because it may have been replaced.
        check(&fs::metadata(path).map_err(failed)?)?;
        let mut options = OpenOptions::new();
        // The opening of a pipe would wait for its writer.
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        check(&metadata)?;
        let stamp = Stamp::of(&metadata);
        let bytes = stamp.bytes;
        if bytes == 0 || !bytes.is_multiple_of(FRAME_BYTES) {
            return Err(ImageError::Ragged { path: path.to_owned(), bytes });
        }
        if bytes / FRAME_BYTES >= u64::from(u32::MAX) {
            return Err(ImageError::TooLarge { path: path.to_owned(), bytes });
        }
        Ok(Layer { file, path: path.to_owned(), stamp })
    }

    /// Its pages.
    pub(super) fn nr_pages(&self) -> u64 {
        self.stamp.bytes / FRAME_BYTES
    }

    /// Its name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// What a file is that is no regular one.
fn kind(kind: FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_file() => None,
        kind if kind.is_dir() => Some("a folder"),
        kind if kind.is_fifo() => Some("a pipe"),
        kind if kind.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

impl Layer {
    /// Lets the system know that `pages` from `page` on are going to be read.
    pub(super) fn will_need(&self, page: u64, pages: u64) {
        // Linux takes no more of one call than the disk's longest read, or its read-ahead (`force_page_cache_ra`, mm/readahead.c).
        for first in (page..page + pages).step_by(AT_ONCE as usize) {
            let bytes = NonZeroU64::new(AT_ONCE.min(page + pages - first) * FRAME_BYTES);
            // A hint: what is not taken is read later.
            let _ = fadvise(&self.file, first * FRAME_BYTES, bytes, Advice::WillNeed);
        }
    }

    /// Reads `pages` from `page` on to as many frames from `first` on, which nobody else uses, and lets `look` see each of them with its
    /// number.
    pub(super) fn read(
        &self,
        pool: &Pool,
        page: u64,
        first: FrameNo,
        pages: u64,
        look: impl FnMut(u64, &[u8]) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let bytes = (pages * FRAME_BYTES) as usize;
        let at = pool.memory().address(first, 0, bytes);
        // SAFETY:
        // 1. `address` has checked that the pages lie in the direct map, which is mapped read-write for as long as
        //    the pool lives, and any byte value is a `u8`;
        // 2. the caller has the frames to itself, so nothing else reads or writes the pages meanwhile.
        let into = unsafe { std::slice::from_raw_parts_mut(at, bytes) };
        self.read_into(page, into, look)
    }

    /// The same to `into`, whole pages of which follow one another.
    pub(super) fn read_into(
        &self,
        page: u64,
        into: &mut [u8],
        mut look: impl FnMut(u64, &[u8]) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let result = self.file.read_exact_at(into, page * FRAME_BYTES);
        // A file that was changed may have been too short for it; that is the better reason.
        self.check()?;
        result.map_err(|error| ReadError::Failed {
            path: self.path.clone(),
            page,
            cause: error.to_string(),
        })?;
        (page..)
            .zip(into.chunks(FRAME_BYTES as usize))
            .try_for_each(|(page, bytes)| look(page, bytes))
    }

    /// Whether the file still is what was opened.
    fn check(&self) -> Result<(), ReadError> {
        let changed = |what| ReadError::Changed { path: self.path.clone(), what };
        let metadata = self.file.metadata().map_err(|error| changed(error.to_string()))?;
        let stamp = Stamp::of(&metadata);
        if stamp.bytes != self.stamp.bytes {
            return Err(changed(format!(
                "it had {} bytes and has {}",
                self.stamp.bytes, stamp.bytes
            )));
        }
        if stamp != self.stamp {
            return Err(changed("somebody wrote to it".to_owned()));
        }
        Ok(())
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp { bytes: metadata.len(), written: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}
