//! SIGINT, SIGTERM and SIGWINCH as bytes in a pipe that the monitor waits for.
#![allow(unsafe_code, reason = "a signal handler")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};
use vmm_sys_util::signal::register_signal_handler;

/// The writing end, for the handler; -1 before there is one.
static INBOX: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(number: i32, _: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {
    let byte = number as u8;
    // SAFETY:
    // 1. `write` is async-signal-safe; the byte lives until it returns. A full pipe means that the monitor
    //    has been told already; a closed descriptor, that it is gone;
    // 2. `errno` is this thread's, and is put back for the code that was interrupted.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(INBOX.load(Ordering::Relaxed), (&raw const byte).cast(), 1);
        *errno = before;
    }
}

/// Where signals arrive.
#[derive(Debug)]
pub(super) struct Signals {
    pub(super) inbox: OwnedFd,
    _outbox: OwnedFd,
}

impl Signals {
    /// The number of one that has arrived.
    pub(super) fn next(&self) -> Option<i32> {
        let mut number = [0];
        let read = rustix::io::read(&self.inbox, &mut number);
        read.is_ok_and(|count| count == 1).then(|| number[0].into())
    }

    /// The number of one that asks for an end.
    pub(super) fn next_end(&self) -> Option<i32> {
        std::iter::from_fn(|| self.next()).find(|&number| number != libc::SIGWINCH)
    }
}

/// Has SIGINT and SIGTERM delivered to the returned pipe, and SIGWINCH: the terminal has another size.
pub(super) fn listen() -> io::Result<Signals> {
    let (inbox, outbox) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    INBOX.store(outbox.as_raw_fd(), Ordering::Relaxed);
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGWINCH] {
        register_signal_handler(number, on_signal)?;
    }
    Ok(Signals { inbox, _outbox: outbox })
}

impl Drop for Signals {
    fn drop(&mut self) {
        INBOX.store(-1, Ordering::Relaxed);
    }
}
