//! The host's side of a socket device: Unix sockets, as Firecracker has them.
//!
//! The guest that connects to port P of the host reaches the socket at `<path>_P`. A program of the host that wants to
//! connect to port P of the guest connects to `<path>`, says `CONNECT P`, and reads `OK` and its own port when the guest has
//! accepted; what does not come so far is closed without a word.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};

/// The longest first line of a host's program: more than the word, the largest port, and what lies between.
const LINE: usize = 32;

/// The sockets.
#[derive(Debug)]
pub struct Host {
    listener: UnixListener,
    path: PathBuf,
}

impl Host {
    /// Programs connect to `listener`, which is at `path`; the guest connects to sockets of that name with `_` and a port
    /// behind it.
    ///
    /// # Errors
    /// It cannot be made not to block.
    pub fn new(listener: UnixListener, path: &Path) -> io::Result<Host> {
        listener.set_nonblocking(true)?;
        Ok(Host { listener, path: path.to_owned() })
    }

    /// What is readable when a program connects.
    pub(super) fn door(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The next program.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Connects the guest to `port`. It does not wait: nobody listens there, or they accept, or their backlog is full.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(Path::new(&path))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(socket.into())
    }
}

/// What a program has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// It wants to go to that port.
    Connect(u32),
    /// Not a whole line.
    Unfinished,
    /// Something else, or it has gone.
    Wrong,
}

/// Reads the first line of `stream`, of which `line` is what came before, and nothing behind it: that is the guest's.
pub(super) fn greeting(stream: &UnixStream, line: &mut Vec<u8>) -> Greeting {
    let mut bytes = [0; LINE];
    let room = &mut bytes[line.len()..];
    let came = match recv(stream, &mut *room, RecvFlags::PEEK) {
        Ok((0, _)) => return Greeting::Wrong,
        Ok((came, _)) => came,
        Err(Errno::WOULDBLOCK | Errno::INTR) => return Greeting::Unfinished,
        Err(_) => return Greeting::Wrong,
    };
    let end = room[..came].iter().position(|&byte| byte == b'\n');
    let taken = end.map_or(came, |end| end + 1);
    match recv(stream, &mut room[..taken], RecvFlags::empty()) {
        Ok((again, _)) if again == taken => {}
        // Nobody else reads from it.
        _ => return Greeting::Wrong,
    }
    line.extend_from_slice(&room[..taken]);
    match end {
        Some(_) => port(line).map_or(Greeting::Wrong, Greeting::Connect),
        None if line.len() == LINE => Greeting::Wrong,
        None => Greeting::Unfinished,
    }
}

/// The port of `CONNECT port`.
fn port(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let word = words.next()?;
    let port = words.next()?;
    (word.eq_ignore_ascii_case("connect") && words.next().is_none()).then(|| port.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_a_word_and_a_port() {
        for (line, expected) in [
            ("CONNECT 52\n", Some(52)),
            ("connect  4294967295 \r\n", Some(u32::MAX)),
            ("CONNECT 4294967296\n", None),
            ("CONNECT -1\n", None),
            ("CONNECT\n", None),
            ("CONNECT 1 2\n", None),
            ("HELLO 1\n", None),
            ("\n", None),
        ] {
            assert_eq!(port(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(port(b"CONNECT \xff\n"), None);
    }
}
