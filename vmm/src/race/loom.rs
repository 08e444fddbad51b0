//! The model checker, for what real threads on this machine cannot show.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::error::LabError;

/// What the model checker said.
#[derive(Debug)]
pub(super) struct Modelled {
    /// Its output.
    pub(super) text: String,
    /// Whether the test ran, and ended as it is expected to.
    pub(super) shown: bool,
    /// Executions that it explored.
    pub(super) executions: u64,
    pub(super) time: Duration,
}

/// What to type for one test.
pub(super) fn command_line(test: &str) -> String {
    format!("cargo loom -- --exact {test}")
}

/// Runs `test`, and lets it say how it fails, if this program stands where it was built and the source is still there.
///
/// # Errors
/// There is no source, or no cargo.
pub(super) fn check(test: &str) -> Result<Modelled, LabError> {
    let line = command_line(test);
    let root = checkout().ok_or_else(|| LabError::NoSource(line.clone()))?;
    let since = Instant::now();
    let mut cargo = Command::new("cargo");
    cargo
        .args(["loom", "--", "--exact", test, "--nocapture"])
        .current_dir(root)
        .env("RUST_BACKTRACE", "0");
    let output = cargo.output().map_err(|source| LabError::NoCargo { line, source })?;
    let text = [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned());
    let text = text.concat();
    // A test that is not there fails nobody.
    let shown = output.status.success() && text.contains("test result: ok. 1 passed");
    Ok(Modelled { executions: executions(&text, test), text, shown, time: since.elapsed() })
}

/// The root of the repository that this was built in.
fn checkout() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    root.join("guest_mm/Cargo.toml").exists().then(|| root.to_owned())
}

/// The number in `TEST: N executions`; a model that fails has no such line, for it ends at its first damage.
fn executions(text: &str, test: &str) -> u64 {
    let told = text.lines().find_map(|line| line.split_once(test)?.1.strip_prefix(": "));
    told.and_then(|told| told.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executions_are_in_the_line_of_the_test() {
        let text = "running 1 test\npin::model::x_holds: 182158 executions\ntest result: ok.";
        assert_eq!(executions(text, "pin::model::x_holds"), 182_158);
        assert_eq!(executions(text, "pin::model::y_holds"), 0);
    }
}
