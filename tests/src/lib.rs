//! What the crates' tests share: a runner for `slat`, folders with configs, gates for what a machine lacks, and a reader
//! of source trees.

mod debian;
pub mod imports;
mod impostor;
mod kernel;
mod machine;
mod refusal;
mod report;
mod running;
mod skip;
mod slat;
mod taps;
mod terminal;
pub mod tree;

pub use debian::{Answer, Debian, require_debian};
pub use impostor::impostor;
pub use kernel::elf;
pub use machine::{assert_ended, told};
pub use refusal::assert_refused;
pub use report::Report;
pub use running::Running;
pub use skip::{require_guests, require_kvm, require_userfaultfd, skip, skip_unless_refused};
pub use slat::{Output, Slat};
pub use taps::{require_taps, with_taps};
pub use terminal::Terminal;

use std::fs;
use std::path::{Path, PathBuf};

/// A folder for one test, gone when this is dropped.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new, empty folder. Panics if there is no room for one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Scratch(tempfile::tempdir().expect("a temporary folder can be made"))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes `contents` to the file `name` in the folder and returns its path. Panics if that fails.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, contents).expect("a file in the temporary folder can be written");
        path
    }

    /// Writes a config that boots the built-in guest `hello`, with `more` in front of it.
    pub fn hello(&self, name: &str, more: &str) -> PathBuf {
        self.write(name, format!("{more}\n[boot]\nguest = \"hello\"\n"))
    }
}
