//! `slat balloon`: how much memory a running guest gives back.

use crate::config::Bytes;
use crate::control::{BalloonRequest, Command};

use super::args::BalloonArgs;
use super::question::answer;
use super::{Failure, print};

/// Asks the machine, and prints what it says.
pub(super) fn run(args: &BalloonArgs) -> Result<(), Failure> {
    let request = BalloonRequest { target: args.size.map(Bytes::get) };
    let answer = answer(&args.socket, &Command::Balloon(request))?;
    print(&if args.json { answer.to_line() } else { answer.text() })
}
