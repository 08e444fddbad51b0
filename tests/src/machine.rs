//! A machine from its start to its end, what it said, and what was reported of it.

use std::path::Path;
use std::process::Command;

use crate::{Output, Report, Scratch, Slat};

impl Slat {
    /// A command that runs the machine of `config`, with `sets` as its overrides.
    pub fn machine(self, config: &Path, sets: &[&str]) -> Command {
        let mut command = self.command(["run"]);
        command.arg(config);
        for set in sets {
            command.args(["--set", set]);
        }
        command
    }

    /// Runs `command`, which runs a machine, to the machine's own end. Panics if there is no report, or one of books that are
    /// not right, or of another exit code.
    pub fn run_machine(self, mut command: Command) -> (Output, Report) {
        let scratch = Scratch::new();
        let report = scratch.path().join("report.json");
        command.arg("--json-report").arg(&report);
        let shown = format!("{command:?}");
        let output = self.start(command).finish();
        assert!(!output.timed_out, "{shown} timed out: {output:?}");
        assert!(report.exists(), "{shown} left no report: {output:?}");
        let report = Report::read(&report);
        assert_eq!(report.text("audit"), "clean", "{shown}: {output:?}");
        assert_eq!(Some(report.number("exit_code") as i32), output.code, "{shown}: {output:?}");
        (output, report)
    }
}

impl Output {
    /// The number after `key=` in the guest's last line: see [`told`].
    pub fn told(&self, key: &str) -> u64 {
        told(&self.stdout, key)
    }
}

/// The number after `key=` in the last line of what a guest `said`. Panics if there is none.
pub fn told(said: &str, key: &str) -> u64 {
    let last = said.lines().last().unwrap_or_default();
    let value = last.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let number = value.and_then(|value| match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    });
    number.unwrap_or_else(|| panic!("no number {key}= in the last line of {said:?}"))
}

/// Asserts that a run ended with `code`, and that each of `says` is said on one of its outputs.
pub fn assert_ended(output: &Output, code: i32, says: &[&str]) {
    assert_eq!(output.code, Some(code), "{output:?}");
    for part in says {
        let said = output.stdout.contains(part) || output.stderr.contains(part);
        assert!(said, "{part:?} is not said: {output:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_whole_key_in_the_last_line_alone() {
        let said = "x: sum=1\nx: checksum=2 sum=0x1f wrong=0\n";
        assert_eq!(["checksum", "sum", "wrong"].map(|key| told(said, key)), [2, 0x1f, 0]);
    }

    #[test]
    #[should_panic(expected = "no number lost= in the last line")]
    fn a_key_that_is_not_there_is_named() {
        told("x: lost=1\nx: sum=1\n", "lost");
    }
}
