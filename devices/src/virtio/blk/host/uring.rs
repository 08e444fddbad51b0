//! A file by `io_uring`: the kernel reads and writes pinned frames while the device thread goes on.
#![allow(unsafe_code, reason = "hands the kernel memory by address")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Ended, Host, Operation};

/// See the module.
pub struct UringFile {
    ring: IoUring,
    event: EventFd,
    /// Not yet handed to the kernel.
    begun: u32,
    /// Not yet ended.
    under_way: u32,
    _file: File,
}

impl std::fmt::Debug for UringFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringFile").field("begun", &self.begun).finish_non_exhaustive()
    }
}

/// Between two tries to wait for what is under way.
const NAP: std::time::Duration = std::time::Duration::from_millis(1);

/// The one file that the ring knows.
const FILE: types::Fixed = types::Fixed(0);

impl UringFile {
    /// Operations on `file`, up to `depth` at a time.
    ///
    /// # Errors
    /// The host has no `io_uring`, or grants none.
    pub fn new(file: File, depth: u32) -> io::Result<UringFile> {
        // COOP_TASKRUN: what ends is noticed when the thread is in the kernel anyway, not by an interrupt of it.
        let ring = IoUring::builder().setup_coop_taskrun().build(depth.next_power_of_two())?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        // Not `REGISTER_EVENTFD_ASYNC`: that is silent about a read that waited for the disk, as it ends in this thread's name.
        submitter.register_eventfd(event.as_raw_fd())?;
        Ok(UringFile { ring, event, begun: 0, under_way: 0, _file: file })
    }
}

fn lasting(through: bool) -> i32 {
    if through { libc::RWF_DSYNC } else { 0 }
}

/// An operation as the ring takes it.
fn entry(operation: Operation, offset: u64, buffers: &[libc::iovec]) -> squeue::Entry {
    let fallocate = |len, mode| opcode::Fallocate::new(FILE, len).offset(offset).mode(mode).build();
    match (operation, buffers) {
        (Operation::Read, &[one]) => {
            opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
        }
        (Operation::Write { through }, &[one]) => {
            opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                .offset(offset)
                .rw_flags(lasting(through))
                .build()
        }
        (Operation::Read, many) => {
            opcode::Readv::new(FILE, many.as_ptr(), many.len() as u32).offset(offset).build()
        }
        (Operation::Write { through }, many) => {
            opcode::Writev::new(FILE, many.as_ptr(), many.len() as u32)
                .offset(offset)
                .rw_flags(lasting(through))
                .build()
        }
        (Operation::Sync, _) => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        (Operation::Punch { len }, _) => {
            fallocate(len, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
        }
        (Operation::Zero { len }, _) => {
            fallocate(len, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
        }
    }
}

impl Host for UringFile {
    unsafe fn begin(
        &mut self,
        slot: u32,
        operation: Operation,
        offset: u64,
        buffers: &[libc::iovec],
    ) -> io::Result<()> {
        let entry = entry(operation, offset, buffers).user_data(slot.into());
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: obligation 1 is the caller's; the operation ends before the ring is gone.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        self.begun += 1;
        self.under_way += 1;
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        while self.begun > 0 {
            match self.ring.submit() {
                Ok(taken) => self.begun -= (taken as u32).min(self.begun),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The completion queue is full: it is emptied before the rest is taken.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn reap(&mut self) -> Option<Ended> {
        let entry = self.ring.completion().next()?;
        self.under_way -= 1;
        Some(Ended { slot: entry.user_data() as u32, result: entry.result() })
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.event.as_raw_fd())
    }

    fn quiet(&mut self) {
        // Nothing to read: the event was noticed before.
        let _ = self.event.read();
    }
}

impl Drop for UringFile {
    /// Waits for what is under way: a ring that is closed would not.
    fn drop(&mut self) {
        while self.under_way > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::ENOMEM | libc::EBUSY) => std::thread::sleep(NAP),
                    // The kernel may write to the memory of what is under way at any time, and whoever drops this is about
                    // to give it to others.
                    _ => {
                        eprintln!("error: a disk's requests cannot be waited for: {error}");
                        std::process::abort();
                    }
                },
            }
            while self.reap().is_some() {}
        }
    }
}
