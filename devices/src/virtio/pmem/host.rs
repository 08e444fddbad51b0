//! The host's side of persistent memory: what makes stores to it last.

use std::{fmt, io};

/// Makes stores to the region last.
pub trait Store: fmt::Debug + Send {
    /// Everything that was stored before lasts when this returns.
    ///
    /// # Errors
    /// It may not.
    fn flush(&mut self) -> io::Result<()>;
}

/// A region that lives no longer than its guest: stores go to pages of the guest's own, or stop it. There is nothing that a
/// flush could make last, so each succeeds at once.
#[derive(Clone, Copy, Debug)]
pub struct Ephemeral;

impl Store for Ephemeral {
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
