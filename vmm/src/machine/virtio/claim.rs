//! Whose a disk is: of machines on one host, and on hosts whose file system has locks, one writes it or many read it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How long to wait for a lock. The kernel takes an `io_uring` down behind the end of its process, and the file with it: a
/// machine that is started again at once would be refused its own disk.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const NAP: Duration = Duration::from_millis(5);

/// A disk that a machine has, or is to have.
#[derive(Debug)]
pub(in crate::machine) struct Claim {
    /// The same open file as the device's, whose lock this is.
    file: File,
    path: PathBuf,
    read_only: bool,
}

impl Claim {
    /// A claim on `file`, at `path`, that is not made yet.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub(super) fn new(file: &File, path: &Path, read_only: bool) -> std::io::Result<Claim> {
        Ok(Claim { file: file.try_clone()?, path: path.to_owned(), read_only })
    }

    /// The file.
    pub(in crate::machine) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it, or waits a little for who is about to let go. Who has made it already has it still.
    ///
    /// # Errors
    /// Another machine has the disk, or the system has no locks.
    pub(in crate::machine) fn make(&self) -> std::io::Result<()> {
        // Two guests that write one disk destroy it; many may read it. Other programs may look at it as they like.
        let lock = match self.read_only {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match flock(&self.file, lock) {
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN) if Instant::now() < deadline => sleep(NAP),
                Err(Errno::AGAIN) => {
                    return Err(std::io::Error::other(
                        "another machine has it as a disk, and one of the two may write: make it read-only in both, or copy it",
                    ));
                }
                Err(other) => return Err(other.into()),
            }
        }
    }

    /// Lets another machine make it.
    pub(in crate::machine) fn drop_lock(&self) {
        // Fails for no lock that was made.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}
