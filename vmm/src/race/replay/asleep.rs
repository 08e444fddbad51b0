//! Whether a thread of this process waits for a lock.

use std::fs;

/// The lock's system call, as `/proc` shows it.
const FUTEX: &str = "202";

/// Whether thread `tid` sleeps in the kernel for a lock. Where the kernel does not tell what a thread sleeps for, any sleep
/// counts.
pub(super) fn waits_for_a_lock(tid: i32) -> bool {
    let task = format!("/proc/self/task/{tid}");
    let Ok(stat) = fs::read_to_string(format!("{task}/stat")) else { return false };
    let for_a_lock = fs::read_to_string(format!("{task}/syscall"))
        .map_or(true, |call| call.split_whitespace().next() == Some(FUTEX));
    state(&stat) == Some('S') && for_a_lock
}

/// The state in a `stat` line. The name before it may hold anything.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;
    use std::thread::{scope, sleep, yield_now};
    use std::time::{Duration, Instant};

    use rustix::thread::gettid;

    use super::*;

    #[test]
    fn the_state_is_behind_the_name() {
        assert_eq!(state("12 (a) R (b) S 1 2"), Some('S'));
        assert_eq!(state(""), None);
    }

    #[test]
    fn a_thread_at_a_lock_waits_and_one_that_runs_does_not() {
        let lock = Mutex::new(());
        let held = lock.lock().unwrap();
        let (tell, told) = channel();
        scope(|scope| {
            scope.spawn(|| {
                tell.send(gettid().as_raw_nonzero().get()).unwrap();
                drop(lock.lock());
            });
            let (tid, since) = (told.recv().unwrap(), Instant::now());
            while !waits_for_a_lock(tid) {
                assert!(since.elapsed() < Duration::from_secs(10), "it never waited");
                yield_now();
            }
            sleep(Duration::from_millis(1));
            assert!(waits_for_a_lock(tid));
            drop(held);
        });
        assert!(!waits_for_a_lock(gettid().as_raw_nonzero().get()), "this thread runs");
    }
}
