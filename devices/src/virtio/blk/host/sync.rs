//! A file by system calls: each operation has ended when it was begun.
#![allow(unsafe_code, reason = "reads and writes memory by address")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::{Ended, Host, Operation};

/// See the module.
#[derive(Debug)]
pub struct SyncFile {
    file: File,
    ended: VecDeque<Ended>,
}

impl SyncFile {
    /// Operations on `file`.
    pub fn new(file: File) -> SyncFile {
        SyncFile { file, ended: VecDeque::new() }
    }
}

impl Host for SyncFile {
    unsafe fn begin(
        &mut self,
        slot: u32,
        operation: Operation,
        offset: u64,
        buffers: &[libc::iovec],
    ) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        let at = offset.cast_signed();
        let count = buffers.len() as i32;
        let fallocate = |mode, len: u64| {
            // SAFETY: no memory is passed.
            unsafe { libc::fallocate64(fd, mode, at, len.cast_signed()) as isize }
        };
        let result = match operation {
            // SAFETY: obligation 1 is the caller's, and the call ends before this does.
            Operation::Read => unsafe { libc::preadv64(fd, buffers.as_ptr(), count, at) },
            // SAFETY: likewise.
            Operation::Write { through } => unsafe {
                let flags = if through { libc::RWF_DSYNC } else { 0 };
                libc::pwritev2(fd, buffers.as_ptr(), count, at, flags)
            },
            // SAFETY: no memory is passed.
            Operation::Sync => unsafe { libc::fdatasync(fd) as isize },
            Operation::Punch { len } => {
                fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, len)
            }
            Operation::Zero { len } => {
                fallocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, len)
            }
        };
        let result = match result {
            -1 => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
            // Linux moves at most 2 GiB at a time.
            moved => moved as i32,
        };
        self.ended.push_back(Ended { slot, result });
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    fn event(&self) -> Option<RawFd> {
        None
    }
}
