//! Running the program as a user does.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

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

    /// Runs the program with `args` and no input, to its end or to the limit. Panics if it cannot be started.
    pub fn run<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Output {
        let started = Instant::now();
        let mut child = Command::new(self.exe)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.exe));
        // Both are drained while it runs: a full pipe would stop it.
        let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
        let status = self.wait(&mut child, started);
        Output {
            code: status.and_then(|status| status.code()),
            stdout: stdout.join().expect("the reader of stdout does not panic"),
            stderr: stderr.join().expect("the reader of stderr does not panic"),
            took: started.elapsed(),
            timed_out: status.is_none(),
        }
    }

    /// The status, or none after the child was killed at the limit. It is not reaped before, so its id is its own.
    fn wait(self, child: &mut Child, started: Instant) -> Option<ExitStatus> {
        loop {
            if let Some(status) = child.try_wait().expect("the child can be waited for") {
                return Some(status);
            }
            if started.elapsed() >= self.limit {
                child.kill().expect("the child can be killed");
                child.wait().expect("the child can be reaped");
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
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
