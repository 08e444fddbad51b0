//! What went wrong, as a value.

use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

/// One thing that went wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Damage {
    /// Which kind: a variant says which one it is expected to do.
    pub(super) kind: &'static str,
    /// Where, and what it should have been.
    what: String,
}

/// An operation was refused, or a book of the service is wrong.
pub(super) const FAILED: &str = "the service failed";
/// A check of the engine's own struck.
const PANICKED: &str = "the engine stopped itself";
/// A thread does not come back.
const STUCK: &str = "a thread is stuck";

/// What a side, or a look at what it did, comes to.
pub(super) type Done = Result<(), Damage>;

impl Damage {
    pub(super) fn new(kind: &'static str, what: impl Into<String>) -> Damage {
        Damage { kind, what: what.into() }
    }

    pub(super) fn stuck(what: impl Into<String>) -> Damage {
        Damage::new(STUCK, what)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)
    }
}

impl<E: Error> From<E> for Damage {
    fn from(error: E) -> Damage {
        Damage::new(FAILED, error.to_string())
    }
}

/// Does `work`. A panic is damage too, and prints nothing.
pub(super) fn attempt(work: impl FnOnce() -> Done) -> Done {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_EXPECTED.get() {
                loud(panic);
            }
        }));
    });
    let before = IS_EXPECTED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_EXPECTED.set(before);
    done.unwrap_or_else(|panic| Err(Damage::new(PANICKED, said(&*panic))))
}

thread_local! {
    /// Whether this thread's panics are caught and reported.
    static IS_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// What a panic says.
pub(super) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_and_errors_become_damage() {
        assert_eq!(attempt(|| Ok(())), Ok(()));
        let error = attempt(|| Err(std::fmt::Error.into())).unwrap_err();
        assert_eq!(error.kind, FAILED);
        let panic = attempt(|| panic!("non-empty table freed")).unwrap_err();
        assert_eq!(panic.to_string(), "the engine stopped itself: non-empty table freed");
    }
}
