//! A timer that a device thread can wait for among its files.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer.
#[derive(Debug)]
pub struct Timer(OwnedFd);

const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Timer(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// What is readable when the time has come.
    pub fn event(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn set(&self, time: Timespec) -> io::Result<()> {
        let when = Itimerspec { it_interval: NEVER, it_value: time };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &when)?;
        Ok(())
    }

    /// Lets it go off in `time`, or at once if that is nothing.
    ///
    /// # Errors
    /// What the system says.
    pub fn once(&self, time: Duration) -> io::Result<()> {
        self.set(spec(time))
    }

    /// Sets it no more.
    pub fn clear(&self) {
        let _ = self.set(NEVER);
    }

    /// It was noticed.
    pub fn quiet(&self) {
        // Nothing to read: it was set again meanwhile.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

/// Zero would mean never.
fn spec(time: Duration) -> Timespec {
    Timespec::try_from(time.max(Duration::from_nanos(1)))
        .unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}
