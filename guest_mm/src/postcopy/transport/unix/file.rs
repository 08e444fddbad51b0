//! Sockets in the file system.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

/// The file of a socket. Dropped, it removes the file, if that is still its own.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// A socket that listens at `path`, where it appears when it does, open to this user only: there is no moment in which others could
/// connect, or who waits for the file be refused. Calls on it do not block. `backlog` connections wait for it.
///
/// # Errors
/// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if there is a file, which stays; what the system says.
pub fn listening(path: &Path, backlog: i32) -> io::Result<(OwnedFd, SocketFile)> {
    // One that is too long nobody could connect to.
    SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux makes the file with the mode that the socket has, less the umask (net/unix/af_unix.c, `unix_bind_bsd`).
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let hidden = hidden(path);
    bind(&socket, &SocketAddrUnix::new(&hidden)?)?;
    let shown = listen(&socket, backlog)
        .map_err(io::Error::from)
        .and_then(|()| fs::hard_link(&hidden, path))
        .and_then(|()| fs::symlink_metadata(path));
    // Failing leaves a file that nobody looks for.
    let _ = fs::remove_file(&hidden);
    let made = shown?;
    Ok((socket, SocketFile { path: path.to_owned(), identity: (made.dev(), made.ino()) }))
}

/// A name beside `path` that nothing has, and short: `bind` takes no more than 107 bytes.
fn hidden(path: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(".{:x}-{:x}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    path.with_file_name(name)
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is there, and still its own.
    pub fn is_there(&self) -> bool {
        let there = fs::symlink_metadata(&self.path);
        there.is_ok_and(|file| (file.dev(), file.ino()) == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there() {
            // Who has removed it meanwhile has done this one's work.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn who_sees_the_file_is_not_refused() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..200 {
            let path = folder.path().join(round.to_string());
            let seen = path.clone();
            let client = thread::spawn(move || {
                loop {
                    match UnixStream::connect(&seen) {
                        Err(error) if error.kind() == ErrorKind::NotFound => thread::yield_now(),
                        other => return other,
                    }
                }
            });
            let listens = listening(&path, 4).unwrap();
            client.join().unwrap().unwrap();
            drop(listens);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "all is gone");
    }

    #[test]
    fn what_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert_eq!(listening(&path, 1).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(listening(&folder.path().join("s".repeat(120)), 1).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
