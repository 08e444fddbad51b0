//! Whether the storm blows: what its threads share.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Until;

/// How often it is looked at again.
const PAUSE: Duration = Duration::from_millis(1);

/// One storm's.
#[derive(Debug)]
pub(super) struct Sky {
    since: Instant,
    clear: AtomicBool,
    struck: AtomicBool,
}

impl Sky {
    pub(super) fn new() -> Sky {
        let (clear, struck) = Default::default();
        Sky { since: Instant::now(), clear, struck }
    }

    /// Whether it is over.
    pub(super) fn is_clear(&self) -> bool {
        self.clear.load(Relaxed)
    }

    /// Ends it.
    pub(super) fn clear_up(&self) {
        self.clear.store(true, Relaxed);
    }

    /// There is damage.
    pub(super) fn thunder(&self) {
        self.struck.store(true, Relaxed);
    }

    /// Seconds since it began.
    pub(super) fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    /// Waits for the end that was asked for, or until `is_broken`.
    pub(super) fn watch(&self, until: Until, is_broken: impl Fn() -> bool) {
        let (limit, at_first) = match until {
            Until::Time(limit) => (limit, false),
            Until::FirstLoss { at_most } => (at_most, true),
        };
        while self.since.elapsed() < limit && !is_broken() {
            if at_first && self.struck.load(Relaxed) {
                break;
            }
            sleep(PAUSE);
        }
    }
}

/// Waits until `done`, for `patience` at most; whether it was.
pub(super) fn wait_for(patience: Duration, done: impl Fn() -> bool) -> bool {
    let since = Instant::now();
    while !done() {
        if since.elapsed() > patience {
            return false;
        }
        sleep(PAUSE);
    }
    true
}
