//! `slat collapse`: huge pages in a running machine.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::control::{Answer, AskError, BadAnswer, Command, ask};

use super::args::CollapseArgs;
use super::{Failure, print, shown};

/// Asks the machine, and prints what it says.
pub(super) fn run(args: &CollapseArgs) -> Result<(), Failure> {
    require_socket(&args.socket)?;
    let command = match (args.pause, args.resume, args.now) {
        (true, _, _) => Command::PauseCollapser,
        (_, true, _) => Command::ResumeCollapser,
        (_, _, true) => Command::Collapse,
        _ => Command::Collapser,
    };
    let answer = ask(&args.socket, command).map_err(CollapseFailure::Ask)?;
    let answer = Answer::parse(&answer)
        .map_err(|source| CollapseFailure::Answer { path: args.socket.clone(), source })?;
    print(&if args.json { answer.to_line() } else { answer.text() })
}

/// Why nothing was collapsed, paused or seen.
#[derive(Debug, thiserror::Error)]
pub(super) enum CollapseFailure {
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

impl CollapseFailure {
    /// Whether what was typed is to blame, rather than a machine that is not there.
    pub(super) fn is_bad_input(&self) -> bool {
        matches!(self, CollapseFailure::NoSocket { .. })
    }
}

fn require_socket(path: &Path) -> Result<(), CollapseFailure> {
    let bad = |why: String| CollapseFailure::NoSocket { path: path.to_owned(), why };
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(()),
        Ok(_) => Err(bad("is no socket: name the one of --control or control.socket".into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(bad(
            "is not there: start the machine with \"slat run CONFIG --control SOCKET\"".into(),
        )),
        Err(error) => Err(bad(format!("cannot be used: {error}"))),
    }
}
