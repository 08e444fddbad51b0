//! The host's side of a disk: a file, and how it is read and written.
//!
//! Requests move data between the file and pinned frames: once, and nowhere else.
#![allow(unsafe_code, reason = "what is begun works on memory by address")]

mod sync;
mod uring;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

pub use sync::SyncFile;
pub use uring::UringFile;

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bytes go from the file to memory.
    Read,
    /// Bytes go from memory to the file.
    Write {
        /// Whether they last when this has ended.
        through: bool,
    },
    /// What was written is to last.
    Sync,
    /// The range reads as zeroes, and its space is the host's again.
    Punch {
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeroes.
    Zero {
        /// Bytes.
        len: u64,
    },
}

/// An operation that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The number that it was begun by.
    pub slot: u32,
    /// Bytes moved, or the negative of an `errno`.
    pub result: i32,
}

/// A file that operations are begun on.
pub trait Host: std::fmt::Debug + Send {
    /// Begins `operation` at `offset` bytes, known by `slot`, with the memory at `buffers`.
    ///
    /// # Safety
    /// 1. The memory of `buffers`, and `buffers` itself, stay where they are, valid for what the operation does with
    ///    them, until it has ended: until [`Host::reap`] returned it, or the host was dropped.
    ///
    /// # Errors
    /// It was not begun.
    unsafe fn begin(
        &mut self,
        slot: u32,
        operation: Operation,
        offset: u64,
        buffers: &[libc::iovec],
    ) -> io::Result<()>;

    /// Hands what was begun to the kernel, if it was not yet.
    ///
    /// # Errors
    /// The kernel does not take it.
    fn submit(&mut self) -> io::Result<()>;

    /// The next operation that has ended, if there is one.
    fn reap(&mut self) -> Option<Ended>;

    /// What is readable when an operation may have ended.
    fn event(&self) -> Option<RawFd>;

    /// The event was noticed.
    fn quiet(&mut self) {}
}

/// How a file is to be read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// By `io_uring` if the host has it, else by system calls.
    Auto,
    /// By `io_uring`.
    Uring,
    /// By system calls, one after the other, on the device's thread.
    Sync,
}

/// Opens the file of a disk.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path, read_only: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(!read_only).open(path)
}

/// `file` by `engine`, for up to `depth` operations at a time.
///
/// # Errors
/// There is no `io_uring`, and no other will do.
pub fn host(file: File, engine: Engine, depth: u32) -> io::Result<Box<dyn Host>> {
    match engine {
        Engine::Sync => Ok(Box::new(SyncFile::new(file))),
        Engine::Uring => Ok(Box::new(UringFile::new(file, depth)?)),
        Engine::Auto => {
            let other = file.try_clone()?;
            match UringFile::new(file, depth) {
                Ok(uring) => Ok(Box::new(uring)),
                Err(_) => Ok(Box::new(SyncFile::new(other))),
            }
        }
    }
}
