//! What the pool's memory lies on: a file that only this process has, and how it was chosen.

use std::fmt;
use std::fs::read_to_string;
use std::os::fd::OwnedFd;

use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, OFlags, fallocate, fstat, ftruncate, memfd_create, openat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use crate::addr::{FrameNo, PageSize};
use crate::geometry::FRAME_BYTES;

/// Kinds of memory that a pool can lie on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackingKind {
    /// A memfd: huge folios where `shmem_enabled` allows them, else pages of 4 KiB.
    Memfd,
    /// A file on a private tmpfs mounted with `huge=advise`: huge folios whatever `shmem_enabled` says.
    Tmpfs,
    /// A memfd of 2 MiB hugetlb pages, which the administrator has set aside.
    Hugetlb,
}

/// Which backing is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackingChoice {
    /// The first that serves: the tmpfs for whole-block faults, else the memfd.
    #[default]
    Auto,
    /// This one or an error.
    Only(BackingKind),
}

/// The file, and one line that says what was chosen and why.
#[derive(Debug)]
pub(crate) struct Backing {
    pub(crate) file: OwnedFd,
    pub(crate) kind: BackingKind,
    pub(crate) why: String,
    /// Whether it gives huge folios to mappings that advise them. Not hugetlb, whose pages are always huge
    /// and are mapped as such without more ado.
    pub(crate) huge_folios: bool,
}

/// Why no memory could be had.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// The file could not be made.
    #[error("cannot make a {kind} pool of {bytes} bytes: {step} failed: {source}; {remedy}")]
    Create {
        /// The kind asked for.
        kind: BackingKind,
        /// The size asked for.
        bytes: u64,
        /// The system call.
        step: &'static str,
        /// What it said.
        source: Errno,
        /// What to do.
        remedy: &'static str,
    },
}

impl fmt::Display for BackingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackingKind::Memfd => "memfd",
            BackingKind::Tmpfs => "huge tmpfs",
            BackingKind::Hugetlb => "hugetlb",
        })
    }
}

impl BackingKind {
    /// The smallest page that a mapping of it can hold.
    pub fn granule(self) -> PageSize {
        match self {
            BackingKind::Memfd | BackingKind::Tmpfs => PageSize::Size4K,
            BackingKind::Hugetlb => PageSize::Size2M,
        }
    }

    pub(super) fn remedy(self) -> &'static str {
        match self {
            BackingKind::Memfd => "raise the memory or file limits of this process",
            BackingKind::Tmpfs => "run with CAP_SYS_ADMIN, or choose the backing memfd",
            BackingKind::Hugetlb => "set aside more pages in vm.nr_hugepages, or choose memfd",
        }
    }
}

impl Backing {
    /// A file of `bytes` for faults of `fault_size`.
    pub(crate) fn open(
        choice: BackingChoice,
        bytes: u64,
        fault_size: PageSize,
    ) -> Result<Backing, BackingError> {
        match choice {
            BackingChoice::Only(kind) => Backing::of_kind(kind, bytes, "as configured".into()),
            BackingChoice::Auto if fault_size == PageSize::Size4K => {
                Backing::of_kind(BackingKind::Memfd, bytes, "faults are served in 4 KiB".into())
            }
            BackingChoice::Auto if memfd_is_huge() => {
                let why = "faults are served in blocks, and shmem_enabled allows huge folios";
                Backing::of_kind(BackingKind::Memfd, bytes, why.into())
            }
            BackingChoice::Auto => {
                let why =
                    "faults are served in blocks, and shmem_enabled rules out a memfd's folios";
                Backing::of_kind(BackingKind::Tmpfs, bytes, why.into()).or_else(|refused| {
                    let why =
                        format!("small folios, because a huge tmpfs is not to be had ({refused})");
                    Backing::of_kind(BackingKind::Memfd, bytes, why)
                })
            }
        }
    }

    /// Gives the memory of `frames` from `first` on back to the host: they read as zero. Translations of them go, in
    /// every mapping of the file.
    ///
    /// # Errors
    /// What `fallocate` says. Some of them may have gone back, or be zero.
    pub(super) fn punch(&self, first: FrameNo, frames: u64) -> Result<(), Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, first.offset(), frames * FRAME_BYTES)
    }

    /// Bytes that the host has memory for, or swap.
    pub(super) fn host_bytes(&self) -> u64 {
        fstat(&self.file).map_or(0, |stat| stat.st_blocks as u64 * 512)
    }

    fn of_kind(kind: BackingKind, bytes: u64, why: String) -> Result<Backing, BackingError> {
        let failed = |step, source| BackingError::Create {
            kind,
            bytes,
            step,
            source,
            remedy: kind.remedy(),
        };
        let memfd = |flags| {
            memfd_create("slat-pool", MemfdFlags::CLOEXEC | flags)
                .map_err(|e| failed("memfd_create", e))
        };
        let file = match kind {
            BackingKind::Memfd => memfd(MemfdFlags::empty())?,
            BackingKind::Hugetlb => memfd(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)?,
            BackingKind::Tmpfs => private_tmpfs_file(bytes).map_err(|(step, e)| failed(step, e))?,
        };
        ftruncate(&file, bytes).map_err(|e| failed("ftruncate", e))?;
        let huge_folios = match kind {
            BackingKind::Memfd => memfd_is_huge(),
            BackingKind::Tmpfs => true,
            BackingKind::Hugetlb => false,
        };
        Ok(Backing { file, kind, why, huge_folios })
    }
}

/// An unnamed file on a tmpfs that is attached nowhere: it ends with its last descriptor.
fn private_tmpfs_file(bytes: u64) -> Result<OwnedFd, (&'static str, Errno)> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| ("fsopen", e))?;
    // The tmpfs charges whole pages only, so the pool's size is a limit that is never met: a write
    // into the pool cannot fail half way with SIGBUS.
    for (key, value) in [("huge", "advise".to_owned()), ("size", bytes.to_string())] {
        fsconfig_set_string(&fs, key, value).map_err(|e| ("fsconfig", e))?;
    }
    fsconfig_create(&fs).map_err(|e| ("fsconfig", e))?;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|e| ("fsmount", e))?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    openat(&mount, ".", flags, Mode::RUSR | Mode::WUSR).map_err(|e| ("openat", e))
}

/// Whether a memfd gets huge folios on `MADV_HUGEPAGE`.
fn memfd_is_huge() -> bool {
    let modes = read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    modes.is_ok_and(|modes| {
        ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|mode| modes.contains(mode))
    })
}
