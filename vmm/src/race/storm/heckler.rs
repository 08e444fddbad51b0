//! Takes devices off their CPU at random points, most of them at a pin.
//!
//! The gap that a protocol has to close is a few instructions long, and a collapse takes a thousand times as long: only a device
//! that is interrupted inside of the gap meets one there. A busy host does that now and then, and this does it all the time: a
//! signal, whose handler sleeps.
#![allow(unsafe_code, reason = "a signal handler, and the threads that it interrupts")]

use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, register_signal_handler};

use super::sky::Sky;

/// How long a device is off: time for some collapses.
const STALL_NS: i64 = 1_000_000;
/// Between two signals.
const PAUSE: Duration = Duration::from_micros(10);

/// One round in so many interrupts devices wherever they are, the others where they pin.
const ANYWHERE: usize = 4;

/// The signal: one that is otherwise ignored, and not the one that kicks vCPUs.
const SIGNAL: i32 = libc::SIGURG;

extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {
    let stall = libc::timespec { tv_sec: 0, tv_nsec: STALL_NS };
    // SAFETY:
    // 1. `nanosleep` may be called in a signal handler, reads a valid time and writes nothing to null;
    // 2. `errno` is this thread's own, and whoever was interrupted finds it as it was.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::nanosleep(&stall, null_mut());
        *errno = before;
    }
}

/// The threads that can be interrupted.
#[derive(Debug, Default)]
pub(super) struct Audience(Mutex<Vec<Arc<Seat>>>);

/// A thread of the audience.
#[derive(Debug)]
struct Seat {
    thread: libc::pthread_t,
    /// What it has done. Relaxed, as is `aim`: it is only asked whether it has gone on.
    steps: AtomicU64,
    /// The block that it is about to pin something of, plus one; or 0.
    aim: AtomicU64,
}

// SAFETY: `pthread_self` made it, and `Attendance` takes the seat back before the thread ends.
unsafe impl Killable for Seat {
    fn pthread_handle(&self) -> libc::pthread_t {
        self.thread
    }
}

/// What was seen of the audience at the last look.
#[derive(Debug, Default)]
pub(super) struct Looks(Vec<Look>);

#[derive(Clone, Copy, Debug)]
struct Look {
    steps: u64,
    is_done: bool,
}

/// While a thread has it, it is one of the audience.
#[derive(Debug)]
pub(super) struct Attendance<'a> {
    audience: &'a Audience,
    seat: Arc<Seat>,
}

impl Audience {
    /// An audience, and a handler for its signal.
    ///
    /// # Errors
    /// What `sigaction` says.
    pub(super) fn new() -> Result<Audience, errno::Error> {
        register_signal_handler(SIGNAL, on_signal)?;
        Ok(Audience::default())
    }

    /// Makes this thread one of it.
    pub(super) fn attend(&self) -> Attendance<'_> {
        // SAFETY: asks for a number and cannot fail.
        let thread = unsafe { libc::pthread_self() };
        let seat = Arc::new(Seat { thread, steps: AtomicU64::new(0), aim: AtomicU64::new(0) });
        self.lock().push(Arc::clone(&seat));
        Attendance { audience: self, seat }
    }

    /// Interrupts one after the other until the storm is over, none that has not gone on since the last time: it is off
    /// still.
    pub(super) fn heckle(&self, sky: &Sky) {
        let mut seen = Vec::new();
        for turn in 0.. {
            if sky.is_clear() {
                return;
            }
            self.interrupt(turn, &mut seen);
            sleep(PAUSE);
        }
    }

    fn interrupt(&self, turn: usize, seen: &mut Vec<u64>) {
        let seats = self.lock();
        if seats.is_empty() {
            return;
        }
        let count = seats.len();
        seen.resize(count, 0);
        let is_back = |&number: &usize| seats[number].steps.load(Relaxed) != seen[number];
        let is_aiming = |number: &usize| seats[*number].aim.load(Relaxed) != 0;
        // Who does much beside its pins is mostly to be interrupted at those.
        let anywhere = (turn / count).is_multiple_of(ANYWHERE);
        let aiming =
            || (turn..turn + count).map(|n| n % count).find(|n| is_back(n) && is_aiming(n));
        let found = if anywhere { None } else { aiming() };
        let number = found.unwrap_or(turn % count);
        if is_back(&number) {
            seen[number] = seats[number].steps.load(Relaxed);
            // It is there: to leave, it would need the lock. Failing, it is left in peace.
            let _ = seats[number].kill(SIGNAL);
        }
    }

    /// The block that somebody is about to pin something of who has not gone on since the last look; the same only
    /// once.
    pub(super) fn stuck(&self, looks: &mut Looks) -> Option<u64> {
        let seats = self.lock();
        looks.0.resize(seats.len(), Look { steps: 0, is_done: true });
        seats.iter().zip(&mut looks.0).find_map(|(seat, look)| {
            let steps = seat.steps.load(Relaxed);
            if look.steps != steps {
                *look = Look { steps, is_done: false };
                return None;
            }
            if std::mem::replace(&mut look.is_done, true) {
                return None;
            }
            seat.aim.load(Relaxed).checked_sub(1)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attendance<'_> {
    /// This thread goes on, and is about to pin something of `block`.
    pub(super) fn aim(&self, block: u64) {
        self.seat.steps.store(self.seat.steps.load(Relaxed) + 1, Relaxed);
        self.seat.aim.store(block + 1, Relaxed);
    }

    /// It has pinned it.
    pub(super) fn hit(&self) {
        self.seat.aim.store(0, Relaxed);
    }
}

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        self.audience.lock().retain(|seat| !Arc::ptr_eq(seat, &self.seat));
    }
}
