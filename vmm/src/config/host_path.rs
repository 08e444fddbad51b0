//! Paths in a config.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// A path on the host, relative to the folder that the monitor runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPath(pub PathBuf);

impl std::ops::Deref for HostPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// Paths need not be UTF-8, JSON must: other bytes become U+FFFD.
impl Serialize for HostPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.display())
    }
}
