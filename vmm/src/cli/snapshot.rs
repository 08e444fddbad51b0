//! `slat snapshot`: a running machine is saved.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use crate::control::{Command, Progress, SnapshotRequest};

use super::args::SnapshotArgs;
use super::question::answer_and_watch;
use super::{Failure, print};

/// Asks the machine, shows how far it is where somebody looks, and prints what it says.
pub(super) fn run(args: &SnapshotArgs) -> Result<(), Failure> {
    // The machine runs in a folder of its own.
    let absolute = |path: &Path| {
        let failed = |source| Failure::Write { path: path.to_owned(), source };
        std::path::absolute(path).map_err(failed)
    };
    let request = SnapshotRequest {
        folder: absolute(&args.folder)?,
        base: args.base.as_deref().map(absolute).transpose()?,
        track: args.track,
        stop: args.stop,
    };
    let mut shown = Shown { on: io::stderr().is_terminal() && !args.json };
    let answer = answer_and_watch(&args.socket, &Command::Snapshot(request), &mut |progress| {
        shown.show(progress);
    });
    drop(shown);
    let answer = answer?;
    print(&if args.json { answer.to_line() } else { answer.text() })
}

/// A line that is written over and over again, and goes in the end.
struct Shown {
    on: bool,
}

impl Shown {
    fn show(&mut self, Progress { done, of }: Progress) {
        if self.on {
            let _ = write!(io::stderr(), "\rsaving: {} %", 100 * done / of.max(1));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.on {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
