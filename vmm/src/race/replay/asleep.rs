//! Whether a thread of this process waits for another.

use std::fmt;
use std::fs;

/// The system call of a lock, as `/proc` shows it.
const FUTEX: &str = "202";
/// What it shows of a thread that sleeps outside of all system calls: a page fault does not end.
const NO_CALL: &str = "-1";

/// What a thread waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// Somebody has the lock.
    Lock,
    /// The page that it touched has not come.
    Page,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wait::Lock => "waits for the lock",
            Wait::Page => "waits for the page",
        })
    }
}

/// What thread `tid` sleeps in the kernel for, if that is another thread. Where the kernel does not tell what a
/// thread sleeps for, it is taken for a lock.
pub(super) fn waits_for(tid: i32) -> Option<Wait> {
    let task = format!("/proc/self/task/{tid}");
    let stat = fs::read_to_string(format!("{task}/stat")).ok()?;
    if state(&stat) != Some('S') {
        return None;
    }
    let Ok(call) = fs::read_to_string(format!("{task}/syscall")) else { return Some(Wait::Lock) };
    match call.split_whitespace().next() {
        Some(FUTEX) => Some(Wait::Lock),
        Some(NO_CALL) => Some(Wait::Page),
        _ => None,
    }
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
            while waits_for(tid) != Some(Wait::Lock) {
                assert!(since.elapsed() < Duration::from_secs(10), "it never waited");
                yield_now();
            }
            sleep(Duration::from_millis(1));
            assert_eq!(waits_for(tid), Some(Wait::Lock));
            drop(held);
        });
        assert_eq!(waits_for(gettid().as_raw_nonzero().get()), None, "this thread runs");
    }
}
