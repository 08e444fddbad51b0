//! `slat restore`

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use crate::config::{Host, MachineConfig};
use crate::machine::{Machine, MachineError};
use crate::snapshot::Snapshot;

use super::Failure;
use super::args::RestoreArgs;
use super::run::{tell, write_json};

/// Runs the machine from where it was saved; the exit code is the guest's verdict.
pub(super) fn run(args: &RestoreArgs, started: Instant) -> Result<ExitCode, Failure> {
    let snapshot = Snapshot::open(&args.folder).map_err(MachineError::from)?;
    let path = snapshot.config().map_err(MachineError::from)?;
    let mut overrides = args.overrides.clone();
    overrides.extend(args.control.iter().map(|path| format!("control.socket={path}")));
    let config = MachineConfig::load(&path, &overrides, Host::of_this_cpu())?;
    let (machine, learnt) = if args.lazy {
        let (machine, learnt) = Machine::lazily_from_snapshot(&config, &snapshot, started)?;
        (machine, Some(learnt))
    } else {
        (Machine::from_snapshot(&config, &snapshot, started)?, None)
    };
    // Its checksums are as large as its memory divided by 512.
    drop(snapshot);
    let outcome = machine.run()?;
    tell(args.quiet, &outcome);
    if let Some(Err(error)) = learnt.map(|learnt| learnt.keep()) {
        // The next lazy start is slower for it, and that is all.
        let _ = writeln!(io::stderr(), "slat: what was needed first is not written down: {error}");
    }
    if let Some(path) = &args.json_report {
        write_json(path, &outcome.report)?;
    }
    Ok(ExitCode::from(outcome.report.exit_code))
}
