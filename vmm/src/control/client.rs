//! Who asks.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::request::Command;
use super::server::{PATIENCE, PROGRESS, Progress};

/// What is waited for in all: a client before this one has its time, too.
const WAIT: Duration = PATIENCE.saturating_mul(2);

/// Longer answers are none: the map of a guest of a TiB has 60 MiB.
const LONGEST_ANSWER: u64 = 1 << 30;

/// A line that is not the answer yet.
#[derive(serde::Deserialize)]
struct Told {
    progress: Progress,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is a socket, and nobody behind it.
    #[error("nobody listens on {0:?}: the machine is not running, start it with \"slat run\"")]
    NotRunning(PathBuf),
    /// It does not answer in time.
    #[error("the machine behind {0:?} does not answer")]
    Silent(PathBuf),
    /// The system.
    #[error("{path:?} cannot be asked: {source}")]
    System {
        /// The socket.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Asks the machine behind the socket at `path`; its response, one line of JSON, an error of its own included.
///
/// # Errors
/// [`AskError`].
pub fn ask(path: &Path, command: &Command) -> Result<Vec<u8>, AskError> {
    ask_and_watch(path, command, &mut |_| {})
}

/// The same; `see` is told how far the machine is with what takes long. It may take as long as it says something.
///
/// # Errors
/// [`AskError`].
pub fn ask_and_watch(
    path: &Path,
    command: &Command,
    see: &mut dyn FnMut(Progress),
) -> Result<Vec<u8>, AskError> {
    let failed = |source: io::Error| match source.kind() {
        // The last two: it ended while this client waited for its turn.
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => AskError::NotRunning(path.to_owned()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent(path.to_owned()),
        _ => AskError::System { path: path.to_owned(), source },
    };
    let mut socket = UnixStream::connect(path).map_err(failed)?;
    socket.set_write_timeout(Some(WAIT)).map_err(failed)?;
    socket.write_all(command.to_line().as_bytes()).map_err(failed)?;
    let mut until = Instant::now() + WAIT;
    let mut answer = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        // All lines but the last are about progress.
        while answer.starts_with(PROGRESS.as_bytes())
            && let Some(end) = answer.iter().position(|&byte| byte == b'\n')
        {
            let Ok(Told { progress }) = serde_json::from_slice(&answer[..end]) else { break };
            see(progress);
            answer.drain(..=end);
            until = Instant::now() + WAIT;
        }
        if answer.last() == Some(&b'\n') || answer.len() as u64 >= LONGEST_ANSWER {
            break;
        }
        let left = until.saturating_duration_since(Instant::now());
        // A time-out of zero would be none.
        let left = left.max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left)).map_err(failed)?;
        match socket.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    // Who hangs up without a word was about to end.
    if answer.is_empty() { Err(AskError::NotRunning(path.to_owned())) } else { Ok(answer) }
}
