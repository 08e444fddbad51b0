//! A question to a running machine.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::control::{Answer, AskError, BadAnswer, Command, Progress, ask_and_watch};

use super::shown;

/// What the machine behind the socket at `path` says to `command`.
///
/// # Errors
/// [`AskFailure`].
pub(super) fn answer(path: &Path, command: &Command) -> Result<Answer, AskFailure> {
    answer_and_watch(path, command, &mut |_| {})
}

/// The same; `see` is told how far the machine is.
///
/// # Errors
/// [`AskFailure`].
pub(super) fn answer_and_watch(
    path: &Path,
    command: &Command,
    see: &mut dyn FnMut(Progress),
) -> Result<Answer, AskFailure> {
    require_socket(path)?;
    let answer = ask_and_watch(path, command, see).map_err(AskFailure::Ask)?;
    Answer::parse(&answer).map_err(|source| AskFailure::Answer { path: path.to_owned(), source })
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskFailure {
    /// No socket is there.
    #[error("{} {why}", shown(path))]
    NoSocket {
        /// What was named.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The machine cannot be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The machine says no, or is none.
    #[error("what listens on {} {source}", shown(path))]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: BadAnswer,
    },
}

impl AskFailure {
    /// Whether what was typed is to blame, rather than a machine that is not there.
    pub(super) fn is_bad_input(&self) -> bool {
        matches!(self, AskFailure::NoSocket { .. })
    }
}

fn require_socket(path: &Path) -> Result<(), AskFailure> {
    let bad = |why: String| AskFailure::NoSocket { path: path.to_owned(), why };
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(()),
        Ok(_) => Err(bad("is no socket: name the one of --control or control.socket".into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(bad(
            "is not there: start the machine with \"slat run CONFIG --control SOCKET\"".into(),
        )),
        Err(error) => Err(bad(format!("cannot be used: {error}"))),
    }
}
