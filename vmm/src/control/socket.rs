//! The socket's file: made for its user alone, in the place of one that nobody listens on, and removed at the end.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest_mm::postcopy::transport::listening;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub use guest_mm::postcopy::transport::SocketFile;

/// Clients that wait while one is served.
const BACKLOG: i32 = 16;

/// How long another monitor may take to look after the same folder's sockets.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another machine has it.
    #[error("{0:?} is the socket of a machine that runs: stop that one, or use another path")]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{0:?} is there already and is no socket: remove it, or use another path")]
    NoSocket(PathBuf),
    /// The system.
    #[error("the socket {path:?} cannot be made: {source}")]
    System {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A socket that clients can connect to; they wait until a [`Server`](super::Server) takes it. Its file goes when this is
/// dropped.
#[derive(Debug)]
pub struct Listener {
    /// Goes first: who sees it is not refused.
    pub(super) file: SocketFile,
    pub(super) socket: UnixListener,
}

impl Listener {
    /// The socket, and the file that goes when it is dropped: for other services than the control socket's.
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.socket, self.file)
    }

    /// Listens at `path`, with mode 0600.
    ///
    /// # Errors
    /// [`BindError`]; what lay at `path` lies there still.
    pub fn bind(path: &Path) -> Result<Listener, BindError> {
        let failed = |source| BindError::System { path: path.to_owned(), source };
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        // Two monitors that find the same stale socket would each remove it, and the slower one would remove the other's
        // new one. Closing the folder lets go of it.
        let folder = File::open(folder).map_err(failed)?;
        lock(&folder).map_err(failed)?;
        let made = match listening(path, BACKLOG) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                make_room(path)?;
                listening(path, BACKLOG)
            }
            other => other,
        };
        let (socket, file) = made.map_err(failed)?;
        Ok(Listener { socket: socket.into(), file })
    }
}

/// Removes a socket that nobody listens on.
fn make_room(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::System { path: path.to_owned(), source };
    let there = fs::symlink_metadata(path).map_err(failed)?;
    if !there.file_type().is_socket() {
        return Err(BindError::NoSocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(source) => Err(failed(source)),
    }
}

fn lock(folder: &File) -> io::Result<()> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < until => sleep(Duration::from_millis(1)),
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_for_its_user_and_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves it");
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::InUse(_))));
        assert!(UnixStream::connect(&path).is_ok());
        drop(listener);
    }

    #[test]
    fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::NoSocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(matches!(Listener::bind(folder.path()), Err(BindError::NoSocket(_))));
        let nowhere = folder.path().join("no/where");
        assert!(matches!(Listener::bind(&nowhere), Err(BindError::System { .. })));
        let long = folder.path().join("s".repeat(200));
        assert!(matches!(Listener::bind(&long), Err(BindError::System { .. })));
    }

    #[test]
    fn a_file_that_has_become_somebody_elses_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn of_many_that_find_a_stale_socket_one_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let bound = std::thread::scope(|scope| {
                let tries: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| Listener::bind(&path).ok())).collect();
                let bound: Vec<_> = tries.into_iter().map(|t| t.join().unwrap()).collect();
                bound.into_iter().flatten().collect::<Vec<_>>()
            });
            assert_eq!(bound.len(), 1);
            assert!(UnixStream::connect(&path).is_ok());
        }
    }
}
