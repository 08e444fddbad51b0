//! A program that is still running.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Output;

/// How often a condition is looked at again.
const PAUSE: Duration = Duration::from_millis(1);

/// A child, its output read as it comes. One that is dropped before its end is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Capture,
    stderr: Capture,
    started: Instant,
    limit: Duration,
}

impl Running {
    /// Starts `command`, whose outputs are read if they are pipes. Panics if it cannot be started.
    pub fn start(mut command: Command, limit: Duration) -> Running {
        let started = Instant::now();
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        // Both are read while it runs: a full pipe would stop it.
        Running {
            stdin: child.stdin.take(),
            stdout: Capture::of(child.stdout.take()),
            stderr: Capture::of(child.stderr.take()),
            child,
            started,
            limit,
        }
    }

    /// The child's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_some()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Waits until `look` finds something in standard output; nothing if the child ends before. Panics at the limit.
    pub fn find<T>(&mut self, what: &str, look: impl Fn(&str) -> Option<T>) -> Option<T> {
        loop {
            let ended = self.child.try_wait().expect("the child can be waited for").is_some();
            // What it wrote last may come after its end.
            let complete = ended && self.stdout.is_complete();
            let found = look(&self.stdout());
            if found.is_some() || complete {
                return found;
            }
            assert!(self.started.elapsed() < self.limit, "no {what:?} yet: {}", self.stdout());
            thread::sleep(PAUSE);
        }
    }

    /// Waits until standard output has `text`, and says whether it came before the child's end. Panics at the limit.
    pub fn says(&mut self, text: &str) -> bool {
        self.find(text, |said| said.contains(text).then_some(())).is_some()
    }

    /// The same for a text that has to come. Panics if the child ends before.
    pub fn wait_for(&mut self, text: &str) {
        let said = self.says(text);
        assert!(said, "{text:?} was never said: {} {}", self.stdout(), self.stderr.text());
    }

    /// Writes `bytes` to its standard input. Panics if that is no pipe, or closed.
    pub fn type_in(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input is a pipe");
        stdin.write_all(bytes).expect("the child reads its input");
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // It is not reaped before `finish`, so its id is its own.
        let pid = Pid::from_raw(self.child.id() as i32).expect("no process has the id 0");
        kill_process(pid, signal).expect("a child can be signalled");
    }

    /// Waits for its end, or kills it at the limit.
    pub fn finish(mut self) -> Output {
        let status = self.wait();
        Output {
            code: status.and_then(|status| status.code()),
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
            took: self.started.elapsed(),
            timed_out: status.is_none(),
        }
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return Some(status);
            }
            if self.started.elapsed() >= self.limit {
                self.child.kill().expect("the child can be killed");
                self.child.wait().expect("the child can be reaped");
                return None;
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended and was waited for is not signalled again: the standard library remembers.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pipe that a thread reads to its end.
#[derive(Debug)]
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Capture {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reader = pipe.map(|mut pipe| {
            let bytes = Arc::clone(&bytes);
            thread::spawn(move || {
                let mut chunk = [0; 4096];
                // What was read before an error is still worth showing.
                while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                    bytes.lock().unwrap_or_else(PoisonError::into_inner).extend(&chunk[..count]);
                }
            })
        });
        Capture { bytes, reader }
    }

    fn is_complete(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        self.text()
    }
}

/// A command without input whose outputs are pipes.
pub(crate) fn piped(exe: &str) -> Command {
    let mut command = Command::new(exe);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_child_hears_what_is_typed_and_is_heard() {
        let mut command = piped("/bin/cat");
        command.stdin(Stdio::piped());
        let mut cat = Running::start(command, LIMIT);
        cat.type_in(b"one\n");
        cat.wait_for("one\n");
        cat.type_in(b"two\n");
        cat.close_input();
        let output = cat.finish();
        assert_eq!((output.code, output.stdout.as_str()), (Some(0), "one\ntwo\n"));
    }

    #[test]
    fn a_signal_leaves_no_code_and_dropping_no_process() {
        let mut command = piped("/bin/sleep");
        command.arg("60");
        let sleep = Running::start(command, LIMIT);
        sleep.signal(Signal::TERM);
        let output = sleep.finish();
        assert_eq!((output.code, output.timed_out), (None, false));

        let mut command = piped("/bin/sleep");
        command.arg("60");
        let sleep = Running::start(command, LIMIT);
        let entry = format!("/proc/{}", sleep.id());
        drop(sleep);
        assert!(!std::path::Path::new(&entry).exists());
    }
}
