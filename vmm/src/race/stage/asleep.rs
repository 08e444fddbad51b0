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
    use std::sync::mpsc::{Receiver, channel};
    use std::thread::{scope, sleep, yield_now};
    use std::time::{Duration, Instant};

    use guest_mm::entry::Marker;
    use guest_mm::place::Content;
    use guest_mm::protocol::Steps;
    use rustix::thread::gettid;

    use crate::race::engine::Engine;
    use crate::race::world::{Size, World, only, page, page_of};

    use super::*;

    fn own_tid() -> i32 {
        gettid().as_raw_nonzero().get()
    }

    /// Returns when the thread that tells its number waits for `wait`, and goes on doing so.
    fn await_wait(told: &Receiver<i32>, wait: Wait) {
        let (tid, since) = (told.recv().unwrap(), Instant::now());
        while waits_for(tid) != Some(wait) {
            assert!(since.elapsed() < Duration::from_secs(10), "it never waited");
            yield_now();
        }
        sleep(Duration::from_millis(1));
        assert_eq!(waits_for(tid), Some(wait));
    }

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
                tell.send(own_tid()).unwrap();
                drop(lock.lock());
            });
            await_wait(&told, Wait::Lock);
            drop(held);
        });
        assert_eq!(waits_for(own_tid()), None, "this thread runs");
    }

    #[test]
    fn a_thread_at_a_page_that_has_not_come_waits_for_it() {
        if !::tests::require_userfaultfd() {
            return;
        }
        let engine = Engine::of(Steps::ALL);
        let world = World::new(&engine, Size::blocks(1, 1)).unwrap();
        let gfn = page(0, 5);
        world.guest.mark(only(gfn), Marker::Missing).unwrap();
        let (tell, told) = channel();
        let read = scope(|scope| {
            let reader = scope.spawn(|| {
                tell.send(own_tid()).unwrap();
                world.window.load(gfn.gpa())
            });
            await_wait(&told, Wait::Page);
            world.guest.place(gfn.gpa(), Content::Bytes(&page_of(42))).unwrap();
            reader.join().unwrap()
        });
        assert_eq!(read, 42);
        assert!(world.end().is_empty());
    }
}
