//! What every refusal of bad input looks like.

use crate::Output;

/// Asserts that the program refused its input in one line that has all of `says`.
pub fn assert_refused(what: &str, output: &Output, says: &[&str]) {
    let told = format!("{what}\n--- {output:?}");
    assert!(!output.timed_out, "timed out: {told}");
    assert_eq!(output.code, Some(2), "exit code: {told}");
    assert_eq!(output.stdout, "", "standard output: {told}");
    assert_eq!(output.stderr.lines().count(), 1, "one line: {told}");
    assert!(output.stderr.ends_with('\n'), "a whole line: {told}");
    assert!(!output.stderr.contains("panicked"), "panic: {told}");
    let control = output.stderr.trim_end().chars().any(char::is_control);
    assert!(!control, "control characters: {told}");
    for part in says {
        assert!(output.stderr.contains(part), "{part:?} is not said: {told}");
    }
}
