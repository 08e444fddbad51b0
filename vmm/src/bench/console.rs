//! What a program says that runs beside the benchmark.

use std::io::Read;
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::BenchError;

/// What a program says, as it says it.
pub(super) struct Console {
    chunks: Receiver<Vec<u8>>,
    /// What came and has not been looked at.
    text: String,
}

impl Console {
    pub(super) fn of(out: Option<ChildStdout>) -> Result<Console, BenchError> {
        let mut out = out.ok_or_else(|| BenchError::Guest("it says nothing".into()))?;
        let (sender, chunks) = channel();
        // It ends with the output.
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut chunk) {
                if sender.send(chunk[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Console { chunks, text: String::new() })
    }

    /// What is said up to `end`, and with it.
    pub(super) fn wait_for(&mut self, end: &str, limit: Duration) -> Result<String, BenchError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.text.find(end) {
                let rest = self.text.split_off(at + end.len());
                return Ok(std::mem::replace(&mut self.text, rest));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.chunks.recv_timeout(left) {
                Ok(chunk) => self.text.push_str(&String::from_utf8_lossy(&chunk)),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(BenchError::Guest(format!("no {end:?} came within {limit:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(BenchError::Guest(format!("it ended before {end:?}")));
                }
            }
        }
    }

    /// Hears it to its end, of which nothing is of interest; `limit` is how long it may be silent.
    pub(super) fn drain(&mut self, limit: Duration) {
        while self.chunks.recv_timeout(limit).is_ok() {}
    }
}
