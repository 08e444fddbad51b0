//! How soon a thread runs that has something to do, while others want its processor.
//!
//! # The thread that somebody waits for
//!
//! Linux gives whoever wakes the processor at once if its slice is shorter than the running thread's, and it has not had more than
//! its share (`kernel/sched/fair.c`, `PREEMPT_SHORT`, Linux 6.12; older kernels take no notice of the slice). No right is needed for
//! it, and no thread gets more time by it.
//!
//! # The thread that has much to do
//!
//! A thread that wakes and is not given the processor then waits for the next tick, up to 4 ms: of a vCPU whose page has just come, a
//! slice says nothing, for it may have had its share. So who moves pages in bulk asks by itself, often, whether anybody waits.
#![allow(unsafe_code, reason = "a system call that no crate of the tree has")]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A slice of [`promptly`], in ns: the shortest that the kernel takes.
const SHORT: u64 = 100_000;

/// The calling thread does little at a time, and somebody waits for it.
pub(crate) fn promptly() {
    // SAFETY: all of its fields are numbers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_policy = libc::SCHED_OTHER as u32;
    attributes.sched_runtime = SHORT;
    // SAFETY: the kernel reads `size` bytes of it; thread 0 is the caller. Refused, the thread is as any other.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// How long after the last sign a [`Courtesy`] gives way: some faults of a guest that waits for each page.
const LASTS: Duration = Duration::from_millis(5);

/// Who has the processor for so long does not wait for anything: a page is asked for, and answered, in a tenth of it.
const LONG: Duration = Duration::from_millis(1);
/// So many times as long as a thread then goes on may it have given the processor away for: beside others that never wait, it keeps a
/// quarter of what would be its own. Turns shorter than [`LONG`] are not counted.
const GIVES: u32 = 3;

/// Lets other threads have the processor while there are signs that somebody is in a hurry. To yield without one would give most of a
/// processor away that is shared with a thread that never waits; and with one, no more than can be spared.
#[derive(Debug)]
pub(crate) struct Courtesy<'c> {
    /// Counts up with each sign.
    signs: &'c AtomicU64,
    seen: u64,
    until: Option<Instant>,
    /// Since when it has gone on.
    since: Instant,
    budget: Budget,
}

/// How long a thread is to go on before it gives way again.
#[derive(Debug, Default)]
struct Budget(Duration);

impl Budget {
    /// It has gone on for `time`; whether it may give way.
    fn went_on(&mut self, time: Duration) -> bool {
        self.0 = self.0.saturating_sub(time);
        self.0.is_zero()
    }

    /// It gave way, and got the processor back after `time`.
    fn gave(&mut self, time: Duration) {
        if time > LONG {
            self.0 = time / GIVES;
        }
    }
}

impl<'c> Courtesy<'c> {
    pub(crate) fn new(signs: &'c AtomicU64) -> Courtesy<'c> {
        let (seen, since) = (signs.load(Relaxed), Instant::now());
        Courtesy { signs, seen, until: None, since, budget: Budget::default() }
    }

    /// Whether somebody may be in a hurry.
    fn hurries(&mut self, now: Instant) -> bool {
        let signs = self.signs.load(Relaxed);
        if signs != std::mem::replace(&mut self.seen, signs) {
            self.until = Some(now + LASTS);
        }
        self.until = self.until.filter(|&until| now < until);
        self.until.is_some()
    }

    /// Gives way, if somebody may be in a hurry and it has not done so for too long; whether it did.
    pub(crate) fn give_way(&mut self) -> bool {
        let now = Instant::now();
        let can = self.budget.went_on(now - self.since);
        self.since = now;
        let gives = self.hurries(now) && can;
        if gives {
            std::thread::yield_now();
            self.since = Instant::now();
            self.budget.gave(self.since - now);
        }
        gives
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_courtesy_lasts_for_some_time_after_each_sign() {
        let signs = AtomicU64::new(7);
        let (mut courtesy, now) = (Courtesy::new(&signs), Instant::now());
        assert!(!courtesy.give_way(), "nobody has said anything");
        assert!(!courtesy.hurries(now));
        signs.fetch_add(1, Relaxed);
        assert!(courtesy.hurries(now) && courtesy.hurries(now + LASTS / 2));
        assert!(!courtesy.hurries(now + LASTS), "it was long ago");
        signs.fetch_add(1, Relaxed);
        assert!(courtesy.hurries(now + LASTS));
        signs.fetch_add(1, Relaxed);
        assert!(courtesy.give_way());
    }

    #[test]
    fn nobody_gives_more_away_than_thrice_what_he_has_had() {
        const MS: Duration = Duration::from_millis(1);
        let mut budget = Budget::default();
        assert!(budget.went_on(Duration::ZERO), "he owes nothing yet");
        budget.gave(MS / 2);
        assert!(
            budget.went_on(Duration::ZERO),
            "those who wait have it soon, and as often as they like"
        );
        budget.gave(6 * MS);
        assert!(!budget.went_on(MS));
        assert!(budget.went_on(MS));
        // Beside one who never waits, a tick at a time.
        let (mut had, mut gave) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..100_000 {
            had += MS / 10;
            if budget.went_on(MS / 10) {
                budget.gave(4 * MS);
                gave += 4 * MS;
            }
        }
        assert!(gave <= had * GIVES + 4 * MS, "{gave:?} of {had:?}");
        assert!(gave >= had * (GIVES - 1), "{gave:?} of {had:?}");
    }

    fn policy_and_slice() -> (u32, u64) {
        // SAFETY: as in `promptly`; the kernel writes as many bytes as it is told that there are.
        unsafe {
            let mut attributes: libc::sched_attr = std::mem::zeroed();
            let size = size_of::<libc::sched_attr>() as u32;
            let got = libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0);
            assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
            (attributes.sched_policy, attributes.sched_runtime)
        }
    }

    #[test]
    fn the_kernel_takes_what_it_is_told() {
        let (_, whatever) = policy_and_slice();
        promptly();
        let (policy, slice) = policy_and_slice();
        assert_eq!(policy, libc::SCHED_OTHER as u32);
        // Kernels before 6.12 show nothing.
        assert!(slice == SHORT || slice == whatever, "{slice}");
    }
}
