//! Windows that a table is mirrored into.

#[cfg(any(test, loom))]
pub(crate) mod fake;
#[cfg(not(loom))]
pub mod uffd;
