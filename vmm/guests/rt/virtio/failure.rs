//! Why a guest that drives a device ends with a verdict other than 0.

use core::fmt;

use virtio_drivers::Error;

use super::Missing;
use crate::cmdline::BadValue;
use crate::exit;

/// What went wrong, to be said in one sentence.
pub enum Failure {
    /// A value of the command line is not understood.
    BadValue(BadValue<'static>),
    /// The device is not there.
    Missing(Missing),
    /// The driver or the device failed at this.
    Driver(&'static str, Error),
    /// The device did what it must not, or not what it must.
    Wrong(&'static str),
}

impl Failure {
    /// The guest's verdict.
    pub fn verdict(&self) -> u8 {
        match self {
            Failure::BadValue(_) => exit::BAD_VALUE,
            _ => exit::FAILED,
        }
    }

    /// For `map_err`: the driver or the device failed at `doing`.
    pub fn at(doing: &'static str) -> impl Fn(Error) -> Failure {
        move |error| Failure::Driver(doing, error)
    }
}

impl From<BadValue<'static>> for Failure {
    fn from(bad: BadValue<'static>) -> Failure {
        Failure::BadValue(bad)
    }
}

impl From<Missing> for Failure {
    fn from(missing: Missing) -> Failure {
        Failure::Missing(missing)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::BadValue(bad) => bad.fmt(f),
            Failure::Missing(missing) => missing.fmt(f),
            Failure::Driver(doing, error) => write!(f, "{doing}: {error}"),
            Failure::Wrong(what) => f.write_str(what),
        }
    }
}
