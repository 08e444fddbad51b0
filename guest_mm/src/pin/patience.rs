//! How long a pin may wait for a page that somebody is working on.

use std::time::{Duration, Instant};

use crate::addr::Gpa;
use crate::sync::Arc;

use super::PinError;

/// Ends waits from another thread.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<std::sync::atomic::AtomicBool>);

impl Cancel {
    /// Lets every wait that was given this one fail, those that begin later too.
    pub fn cancel(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// How long to wait for a collapse, and who may end the wait. What else a pin may meet, a page to be filled or a
/// table's lock, takes its time.
#[derive(Clone, Debug, Default)]
pub struct Patience {
    deadline: Option<Instant>,
    cancel: Option<Cancel>,
}

/// Between two looks at whether a wait is over.
const NAP: Duration = Duration::from_micros(20);

impl Patience {
    /// Waits for as long as it takes. What a pin waits for is a collapse: some 100 us.
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
        if self.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            return Err(PinError::Cancelled { gpa });
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(PinError::TimedOut { gpa });
        }
        std::thread::sleep(NAP);
        Ok(())
    }
}
