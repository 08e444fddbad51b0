//! Running the program as a user does.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use crate::Running;
use crate::running::piped;

/// The program under test, with a time limit.
///
/// ```text
/// const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));
/// let output = SLAT.run(["check", "x.toml"]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Slat {
    exe: &'static str,
    limit: Duration,
}

/// What a run left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code; none if a signal or the time limit ended it.
    pub code: Option<i32>,
    /// Standard output; bytes that are not UTF-8 become U+FFFD.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
    /// Whether the time limit ended it.
    pub timed_out: bool,
}

impl Slat {
    /// The program at `exe`, with a limit of 30 seconds.
    pub const fn at(exe: &'static str) -> Self {
        Slat { exe, limit: Duration::from_secs(30) }
    }

    /// The same with another limit.
    pub const fn limit(self, limit: Duration) -> Self {
        Slat { limit, ..self }
    }

    /// A command that runs the program with `args`, without input, its outputs piped.
    pub fn command<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = piped(self.exe);
        command.args(args);
        command
    }

    /// Where the program is.
    pub const fn exe(self) -> &'static str {
        self.exe
    }

    /// Starts `command`, which is this program's, with this limit. Panics if it cannot be started.
    pub fn start(self, command: Command) -> Running {
        Running::start(command, self.limit)
    }

    /// Runs the program with `args` and no input, to its end or to the limit. Panics if it cannot be started.
    pub fn run<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Output {
        self.start(self.command(args)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_and_the_code_come_back() {
        let output = Slat::at("/bin/sh").run(["-c", "echo out; echo err >&2; exit 3"]);
        assert_eq!(output.code, Some(3));
        assert_eq!(output.stdout, "out\n");
        assert_eq!(output.stderr, "err\n");
        assert!(!output.timed_out);
    }

    #[test]
    fn the_limit_ends_what_does_not_end() {
        let output = Slat::at("/bin/sleep").limit(Duration::from_millis(50)).run(["60"]);
        assert!(output.timed_out);
        assert_eq!(output.code, None);
        assert!(output.took < Duration::from_secs(30));
    }

    #[test]
    fn more_output_than_a_pipe_holds_does_not_block() {
        let output = Slat::at("/bin/sh").run(["-c", "head -c 1000000 /dev/zero"]);
        assert_eq!(output.stdout.len(), 1_000_000);
    }
}
