//! What is answered about a snapshot.

use std::fmt::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A machine that was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Where.
    pub folder: PathBuf,
    /// What tells it from every other.
    pub id: String,
    /// Pages of memory that were written.
    pub pages: u64,
    /// How long the guest stood still.
    pub paused_us: u64,
    /// Whether the machine ends now.
    pub stopped: bool,
}

impl Saved {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let folder = super::collapse::one_line(&self.folder.display().to_string());
        writeln!(
            out,
            "saved in {folder}: {:.1} MiB of memory, while the guest stood still for {:.0} ms; it {}",
            self.pages as f64 / 256.0,
            self.paused_us as f64 / 1e3,
            if self.stopped { "ends" } else { "goes on" },
        )
    }
}
