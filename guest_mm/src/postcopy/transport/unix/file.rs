//! Sockets in the file system.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use rustix::rand::{GetRandomFlags, getrandom};

/// How many names that somebody has may be met by chance.
const MOST_TRIES: u32 = 8;

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
    let hidden = bind_beside(&socket, path)?;
    let shown = listen(&socket, backlog)
        .map_err(io::Error::from)
        .and_then(|()| fs::symlink_metadata(&hidden))
        .and_then(|made| fs::hard_link(&hidden, path).map(|()| made));
    // Failing leaves a file that nobody looks for.
    let _ = fs::remove_file(&hidden);
    let made = shown?;
    Ok((socket, SocketFile { path: path.to_owned(), identity: (made.dev(), made.ino()) }))
}

/// Binds `socket` in the folder of `path`, to a name that nothing had. Which.
fn bind_beside(socket: &OwnedFd, path: &Path) -> io::Result<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(folder, open, Mode::empty())?;
    let mut tries = 0;
    loop {
        let mut number = [0; 4];
        getrandom(&mut number, GetRandomFlags::empty())?;
        let name = format!(".{:08x}", u32::from_ne_bytes(number));
        let hidden = folder.join(&name);
        // The name may be longer than that of `path`, which has no bytes to spare (unix(7)).
        let address = SocketAddrUnix::new(&hidden)
            .or_else(|_| SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd())))?;
        match bind(socket, &address) {
            Ok(()) => return Ok(hidden),
            // Somebody has died here, and left his.
            Err(Errno::ADDRINUSE) if tries < MOST_TRIES => tries += 1,
            Err(error) => return Err(error.into()),
        }
    }
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
    fn a_path_may_be_as_long_as_the_system_takes() {
        let folder = tempfile::tempdir().unwrap();
        let fill = 107 - folder.path().as_os_str().len() - "//s".len();
        let inner = folder.path().join("d".repeat(fill));
        fs::create_dir(&inner).unwrap();
        let path = inner.join("s");
        assert_eq!(path.as_os_str().len(), 107);
        let (_socket, file) = listening(&path, 1).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
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
