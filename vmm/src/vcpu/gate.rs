//! Where vCPUs are kept while the machine is paused.
//!
//! A vCPU comes here with nothing half done: KVM has finished the access for which it left the guest last. Its descriptor
//! stays with its thread, so what is to be done with all of them, as to ask KVM for their state, is done by their threads
//! while they wait ([`Gate::each`]).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kvm_ioctls::VcpuFd;

/// What a vCPU's thread does while it waits: with the vCPU's number, and KVM's vCPU.
pub type Task = Arc<dyn Fn(u8, &VcpuFd) + Send + Sync>;

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
    /// vCPUs that are going to have a thread, and threads that run vCPUs.
    to_come: usize,
    vcpus: usize,
    /// Those of them that wait here.
    waiting: usize,
    /// What each of them is to do, and how many such tasks there have been.
    task: Option<Given>,
    round: u64,
    /// Those that have done it.
    done: usize,
}

#[derive(Clone)]
struct Given(Task);

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task")
    }
}

/// A vCPU's thread, for as long as it runs.
#[derive(Debug)]
pub(super) struct Passer<'g>(&'g Gate);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many vCPUs are going to have a thread: they are waited for.
    pub fn expect(&self, vcpus: usize) {
        self.state().to_come = vcpus;
    }

    /// One more thread runs a vCPU.
    pub(super) fn join(&self) -> Passer<'_> {
        let mut state = self.state();
        state.to_come = state.to_come.saturating_sub(1);
        state.vcpus += 1;
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
        while state.shut && state.waiting < state.vcpus + state.to_come {
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

    /// Whether it is shut.
    pub fn is_shut(&self) -> bool {
        self.state().shut
    }

    /// Lets the thread of each vCPU do `task` once, after [`Gate::shut`]. Whether all have done it before `deadline`; who is
    /// late may still do it.
    pub fn each(&self, deadline: Instant, task: Task) -> bool {
        let mut state = self.state();
        if !state.shut {
            return false;
        }
        state.task = Some(Given(task));
        state.round += 1;
        state.done = 0;
        self.changed.notify_all();
        while state.shut && state.done < state.vcpus {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.task = None;
        state.shut && state.done >= state.vcpus
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
    /// Whether it has to wait.
    #[inline]
    pub(super) fn is_stopped(&self) -> bool {
        self.0.shut.load(Ordering::Acquire)
    }

    /// Waits until the gate is opened, and does what is to be done meanwhile with the vCPU number `index`, which is `fd`.
    #[cold]
    pub(super) fn wait(&self, index: u8, fd: &VcpuFd) {
        self.wait_and(|task| task(index, fd));
    }

    fn wait_and(&self, mut run: impl FnMut(&Task)) {
        let mut state = self.0.state();
        state.waiting += 1;
        // What was to be done before is nothing for this vCPU any more.
        let mut seen = state.round;
        self.0.changed.notify_all();
        while state.shut {
            match state.task.clone().filter(|_| state.round != seen) {
                Some(Given(task)) => {
                    seen = state.round;
                    drop(state);
                    run(&task);
                    state = self.0.state();
                    if state.round == seen {
                        state.done += 1;
                        self.0.changed.notify_all();
                    }
                }
                None => {
                    state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
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

    impl Passer<'_> {
        fn pass(&self) {
            if self.is_stopped() {
                self.wait_and(|_| {});
            }
        }
    }

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
    fn each_that_waits_does_a_task_once_and_nobody_does_an_old_one() {
        let (gate, stop) = (Gate::default(), AtomicBool::new(false));
        let done: Arc<[AtomicU64; 3]> = Arc::default();
        let soon = || Instant::now() + Duration::from_secs(10);
        let task = || -> Task { Arc::new(|_, _| {}) };
        assert!(!gate.each(soon(), task()), "nobody waits at a gate that is open");
        scope(|scope| {
            for index in 0..3 {
                let (gate, stop, done) = (&gate, &stop, Arc::clone(&done));
                scope.spawn(move || {
                    let passer = gate.join();
                    while !stop.load(Ordering::Relaxed) {
                        if passer.is_stopped() {
                            passer.wait_and(|_| {
                                done[index].fetch_add(1, Ordering::Relaxed);
                            });
                        }
                    }
                });
            }
            while gate.state().vcpus < 3 {
                std::thread::yield_now();
            }
            for round in 0..20 {
                assert!(gate.shut(soon(), || {}));
                for half in 1..=2 {
                    assert!(gate.each(soon(), task()));
                    let counts: Vec<_> = done.iter().map(|n| n.load(Ordering::Relaxed)).collect();
                    assert_eq!(counts, [2 * round + half; 3]);
                }
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
    fn a_vcpu_that_has_no_thread_yet_is_waited_for() {
        let gate = Gate::default();
        gate.expect(1);
        assert!(!gate.shut(Instant::now() + Duration::from_millis(5), || {}));
        scope(|scope| {
            scope.spawn(|| {
                sleep(Duration::from_millis(5));
                let passer = gate.join();
                while !passer.is_stopped() {}
                passer.pass();
            });
            assert!(gate.shut(Instant::now() + Duration::from_secs(10), || {}));
            gate.open();
        });
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
