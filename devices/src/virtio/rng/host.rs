//! The host's side of an entropy device: a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// What never blocks, once the host has been started.
pub const URANDOM: &str = "/dev/urandom";

/// A file of entropy, which does not block.
#[derive(Debug)]
pub struct Source(File);

impl Source {
    /// The file at `path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Source> {
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
        Ok(Source(file))
    }

    /// What is read.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
