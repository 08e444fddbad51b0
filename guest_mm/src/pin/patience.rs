//! How long a pin may wait for a page that somebody is working on, or that is elsewhere.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::{Wake, Waker};
use std::thread::{Thread, current, park, park_timeout, sleep};
use std::time::{Duration, Instant};

use crate::addr::Gpa;
use crate::sync::{Arc, Lock, Rank};
use crate::wait::Wait;

use super::PinError;

/// Ends waits from another thread.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Call>);

#[derive(Debug)]
struct Call {
    cancelled: AtomicBool,
    /// Who is asleep, and to be waked by it.
    sleepers: Lock<Vec<Thread>>,
}

impl Default for Call {
    fn default() -> Call {
        Call { cancelled: AtomicBool::new(false), sleepers: Lock::new(Rank::Last, Vec::new()) }
    }
}

impl Cancel {
    /// Lets every wait that was given this one fail, those that begin later too.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Release);
        self.0.sleepers.lock().iter().for_each(Thread::unpark);
    }

    fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Acquire)
    }
}

/// A thread that is waked by a [`Cancel`] while this lives. It is there before the thread looks whether it is cancelled.
struct Sleeper<'c>(&'c Cancel);

impl<'c> Sleeper<'c> {
    fn new(cancel: &'c Cancel) -> Sleeper<'c> {
        cancel.0.sleepers.lock().push(current());
        Sleeper(cancel)
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        let (sleepers, own) = (&mut *self.0.0.sleepers.lock(), current().id());
        if let Some(at) = sleepers.iter().position(|thread| thread.id() == own) {
            sleepers.swap_remove(at);
        }
    }
}

/// Wakes a thread that sleeps.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

/// How long to wait for a collapse or for pages that are elsewhere, and who may end the wait. What else a pin may meet, a page
/// to be filled or a table's lock, takes its time.
#[derive(Clone, Debug, Default)]
pub struct Patience {
    deadline: Option<Instant>,
    cancel: Option<Cancel>,
}

/// Between two looks at whether a collapse is over, which nobody tells.
const NAP: Duration = Duration::from_micros(20);

impl Patience {
    /// Waits for as long as it takes: some 100 us for a collapse, a round trip to the source for a page.
    pub const FOREVER: Patience = Patience { deadline: None, cancel: None };

    /// Waits `time`, counted from now.
    pub fn for_at_most(time: Duration) -> Patience {
        Patience { deadline: Instant::now().checked_add(time), cancel: None }
    }

    /// Waits until `cancel` is used, too.
    #[must_use]
    pub fn or_until(self, cancel: &Cancel) -> Patience {
        Patience { cancel: Some(cancel.clone()), ..self }
    }

    /// Whether nothing but the event itself ends the wait.
    pub(super) fn is_endless(&self) -> bool {
        self.deadline.is_none() && self.cancel.is_none()
    }

    /// Waits a little.
    ///
    /// # Errors
    /// The patience is over.
    pub(super) fn nap(&self, gpa: Gpa) -> Result<(), PinError> {
        self.left(gpa)?;
        sleep(NAP);
        Ok(())
    }

    /// Sleeps until what `begin` waits for, if it does, is over.
    ///
    /// # Errors
    /// The patience is over.
    pub(super) fn sleep(
        &self,
        gpa: Gpa,
        begin: impl FnOnce(&Waker) -> Option<Wait>,
    ) -> Result<(), PinError> {
        let waker = Waker::from(std::sync::Arc::new(Unpark(current())));
        let Some(wait) = begin(&waker) else { return Ok(()) };
        let _sleeps = self.cancel.as_ref().map(Sleeper::new);
        while !wait.is_over() {
            match self.left(gpa)? {
                Some(left) => park_timeout(left),
                None => park(),
            }
        }
        Ok(())
    }

    /// How long it lasts yet.
    fn left(&self, gpa: Gpa) -> Result<Option<Duration>, PinError> {
        if self.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            return Err(PinError::Cancelled { gpa });
        }
        let Some(deadline) = self.deadline else { return Ok(None) };
        match deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            Some(left) => Ok(Some(left)),
            None => Err(PinError::TimedOut { gpa }),
        }
    }
}
