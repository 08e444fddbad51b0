//! `slat collapse`: huge pages in a running machine.

use crate::control::Command;

use super::args::CollapseArgs;
use super::question::answer;
use super::{Failure, print};

/// Asks the machine, and prints what it says.
pub(super) fn run(args: &CollapseArgs) -> Result<(), Failure> {
    let command = match (args.pause, args.resume, args.now) {
        (true, _, _) => Command::PauseCollapser,
        (_, true, _) => Command::ResumeCollapser,
        (_, _, true) => Command::Collapse,
        _ => Command::Collapser,
    };
    let answer = answer(&args.socket, &command)?;
    print(&if args.json { answer.to_line() } else { answer.text() })
}
