//! Places at which a thread can be held.

use std::fmt;

use guest_mm::protocol::Step;

/// A place at which a thread can be held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Point {
    /// Before a step of a protocol.
    Step(Step),
    /// Before something that a side does between its operations.
    Act(&'static str),
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Step(step) => step.fmt(f),
            Point::Act(what) => write!(f, "-- {what}"),
        }
    }
}
