//! Where vCPUs are kept while the machine is paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A gate that every vCPU passes before it enters the guest.
#[derive(Debug, Default)]
pub struct Gate {
    /// A hint for those who pass: what counts is under the lock.
    shut: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    shut: bool,
    /// The run has ended: it is not shut any more.
    over: bool,
    /// Threads that run vCPUs.
    vcpus: usize,
    /// Those of them that wait here.
    waiting: usize,
}

/// A vCPU's thread, for as long as it runs.
#[derive(Debug)]
pub(super) struct Passer<'g>(&'g Gate);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more thread runs a vCPU.
    pub(super) fn join(&self) -> Passer<'_> {
        self.state().vcpus += 1;
        Passer(self)
    }

    /// Shuts it, and waits until every vCPU is here; `kick` gets them out of the guest. Whether all came before `deadline`:
    /// if not, it is open again. It stays open when the run has ended.
    pub fn shut(&self, deadline: Instant, kick: impl Fn()) -> bool {
        {
            let mut state = self.state();
            if state.over {
                return false;
            }
            state.shut = true;
            // Release: who sees it shut looks under the lock.
            self.shut.store(true, Ordering::Release);
        }
        kick();
        let mut state = self.state();
        while state.shut && state.waiting < state.vcpus {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                self.open();
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.shut
    }

    /// Lets everyone pass.
    pub fn open(&self) {
        let mut state = self.state();
        state.shut = false;
        self.shut.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// Lets everyone pass, for good: the run has ended.
    pub(super) fn retire(&self) {
        self.state().over = true;
        self.open();
    }
}

impl Passer<'_> {
    /// Passes, or waits until the gate is opened.
    #[inline]
    pub(super) fn pass(&self) {
        if self.0.shut.load(Ordering::Acquire) {
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        let mut state = self.0.state();
        state.waiting += 1;
        self.0.changed.notify_all();
        while state.shut {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }
}

impl Drop for Passer<'_> {
    fn drop(&mut self) {
        self.0.state().vcpus -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::thread::{scope, sleep};
    use std::time::Duration;

    use super::*;

    #[test]
    fn nobody_is_in_the_guest_while_it_is_shut() {
        let (gate, turns, stop) = (Gate::default(), AtomicU64::new(0), AtomicBool::new(false));
        scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let passer = gate.join();
                    while !stop.load(Ordering::Relaxed) {
                        passer.pass();
                        turns.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..20 {
                while turns.load(Ordering::Relaxed) < 100 {
                    std::thread::yield_now();
                }
                assert!(gate.shut(Instant::now() + Duration::from_secs(10), || {}));
                let before = turns.load(Ordering::Relaxed);
                sleep(Duration::from_millis(1));
                assert_eq!(turns.load(Ordering::Relaxed), before);
                turns.store(0, Ordering::Relaxed);
                gate.open();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_gate_of_a_run_that_has_ended_stays_open() {
        let gate = Gate::default();
        let passer = gate.join();
        gate.retire();
        assert!(!gate.shut(Instant::now() + Duration::from_secs(10), || {}));
        passer.pass();
    }

    #[test]
    fn who_does_not_come_in_time_is_not_waited_for() {
        let gate = Gate::default();
        let passer = gate.join();
        assert!(!gate.shut(Instant::now() + Duration::from_millis(5), || {}));
        // It is open again.
        passer.pass();
    }
}
