//! A Unix socket: who connects has the console, one at a time.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::ioctl_fionread;

use crate::virtio::watch::hung_up;

use super::{Answer, Port, Unheard};

/// What somebody is told who comes second.
const TAKEN: &[u8] = b"this console has a client already\n";

/// A port that is listened for. What the guest writes while nobody has it is kept for who comes next, the latest of it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    /// The same stream twice: it is waited for with two numbers, and each half ends by itself.
    input: Option<UnixStream>,
    output: Option<UnixStream>,
}

impl Socket {
    /// A port for who connects to `listener`.
    ///
    /// # Errors
    /// It cannot be made not to block.
    pub fn new(listener: UnixListener) -> io::Result<Socket> {
        listener.set_nonblocking(true)?;
        Ok(Socket { listener, input: None, output: None })
    }

    /// Whether somebody has the console. Who has gone may still have typed something that the guest has not read.
    fn is_taken(&self) -> bool {
        match (&self.input, &self.output) {
            (Some(input), _) => {
                !hung_up(input.as_fd()) || ioctl_fionread(input).is_ok_and(|unread| unread > 0)
            }
            (None, Some(output)) => !hung_up(output.as_fd()),
            (None, None) => false,
        }
    }
}

impl Port for Socket {
    fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(AsFd::as_fd)
    }

    fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(AsFd::as_fd)
    }

    fn close_input(&mut self) {
        self.input = None;
    }

    fn close_output(&mut self) {
        self.output = None;
    }

    fn unheard(&self) -> Unheard {
        Unheard::Kept
    }

    fn door(&self) -> Option<BorrowedFd<'_>> {
        Some(self.listener.as_fd())
    }

    fn answer_door(&mut self) -> io::Result<Answer> {
        let (mut client, _) = self.listener.accept()?;
        client.set_nonblocking(true)?;
        if self.is_taken() {
            // It has room for a sentence, or is in no state to be told.
            let _ = client.write(TAKEN);
            return Ok(Answer::Refused);
        }
        self.input = Some(client.try_clone()?);
        self.output = Some(client);
        Ok(Answer::Connected)
    }
}
