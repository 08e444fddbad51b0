//! `slat restore`

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use crate::config::{Host, MachineConfig};
use crate::machine::{Machine, MachineError, Restores};
use crate::snapshot::Snapshot;

use super::args::RestoreArgs;
use super::run::{tell, write_json};
use super::{Failure, clone};

/// Runs the machine from where it was saved; the exit code is the guest's verdict.
pub(super) fn run(args: &RestoreArgs, started: Instant) -> Result<ExitCode, Failure> {
    let snapshot = Snapshot::open(&args.folder).map_err(MachineError::from)?;
    let path = snapshot.config().map_err(MachineError::from)?;
    let mut overrides = args.overrides.clone();
    overrides.extend(args.control.iter().map(|path| format!("control.socket={path}")));
    let config = MachineConfig::load(&path, &overrides, Host::of_this_cpu())?;
    if let Some(count) = args.count {
        let (report, learnt) = Restores { config: &config, snapshot: &snapshot, count }.run()?;
        note(learnt.keep());
        return clone::tell(&report, args.json);
    }
    let (machine, learnt) = if args.lazy {
        let (machine, learnt) = Machine::lazily_from_snapshot(&config, &snapshot, started)?;
        (machine, Some(learnt))
    } else {
        (Machine::from_snapshot(&config, &snapshot, started)?, None)
    };
    // With --lazy the image has what it needs of it; without, its checksums are as large as its memory divided by 512.
    drop(snapshot);
    let outcome = machine.run()?;
    tell(args.quiet, &outcome);
    note(learnt.map_or(Ok(()), |learnt| learnt.keep()));
    if let Some(path) = &args.json_report {
        write_json(path, &outcome.report)?;
    }
    Ok(ExitCode::from(outcome.report.exit_code))
}

/// Says that what was needed first is not known to the next lazy start, which is slower for it: that is all.
fn note(kept: io::Result<()>) {
    if let Err(error) = kept {
        let _ = writeln!(io::stderr(), "slat: what was needed first is not written down: {error}");
    }
}
