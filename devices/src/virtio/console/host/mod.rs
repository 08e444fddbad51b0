//! The host's side of a console: where input comes from, and where output goes.

mod files;
mod socket;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

pub use files::Files;
pub use socket::Socket;

/// An end of a console. Its files do not block, and each has a number of its own, by which a device thread waits for it.
pub trait Port: fmt::Debug + Send {
    /// What input is read from, unless there is none now.
    fn input(&self) -> Option<BorrowedFd<'_>>;

    /// What takes output, unless nothing does now.
    fn output(&self) -> Option<BorrowedFd<'_>>;

    /// Nothing more comes from the input.
    fn close_input(&mut self);

    /// The output takes no more.
    fn close_output(&mut self);

    /// What becomes of output while there is nothing that takes it.
    fn unheard(&self) -> Unheard;

    /// What is readable when somebody wants to connect, if anybody can.
    fn door(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Connects who is next at the door, or sends them away.
    ///
    /// # Errors
    /// What the system says: whoever it was has gone, or there is nobody.
    fn answer_door(&mut self) -> io::Result<Answer> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// See [`Port::unheard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard {
    /// It is lost.
    Lost,
    /// The latest of it is kept for who comes next.
    Kept,
}

/// What became of somebody at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They are connected: there are an input and an output now.
    Connected,
    /// They were told that somebody else is.
    Refused,
}
