//! `slat pause` and `slat resume`: a running machine comes to rest, and goes on.

use crate::control::Command;

use super::args::SocketArgs;
use super::question::answer;
use super::{Failure, print};

/// Asks the machine for `command`, and prints what it says.
pub(super) fn run(args: &SocketArgs, command: &Command) -> Result<(), Failure> {
    let answer = answer(&args.socket, command)?;
    print(&if args.json { answer.to_line() } else { answer.text() })
}
