//! `slat run`

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use crate::config::MachineConfig;
use crate::emulate::ProfileReport;
use crate::machine::{Machine, Outcome};
use crate::map::{Document, State, picture};
use crate::vcpu::CpuReport;

use super::args::RunArgs;
use super::{Failure, write_whole};

/// Runs the machine; the exit code is the guest's verdict.
pub(super) fn run(args: &RunArgs, started: Instant) -> Result<ExitCode, Failure> {
    let mut args = args.clone();
    // The last one wins, and what is typed for this alone is meant.
    args.config.overrides.extend(args.control.iter().map(|path| format!("control.socket={path}")));
    let config = args.config.load()?;
    let machine = Machine::new(&config, started)?;
    let outcome = if args.profile { machine.profiled() } else { machine }.run()?;
    finish(&args, &config, outcome)
}

/// Tells what came of a run, and gives the exit code.
pub(super) fn finish(
    args: &RunArgs,
    config: &MachineConfig,
    outcome: Outcome,
) -> Result<ExitCode, Failure> {
    tell(args.quiet, &outcome);
    if let Some(path) = &args.json_report {
        write_json(path, &outcome.report)?;
    }
    let exit_code = outcome.report.exit_code;
    if let Some(path) = &args.memory_map {
        let machine = config.file.display().to_string();
        write_map(path, &Document::new(machine, State::Finished, outcome.map))?;
    }
    Ok(ExitCode::from(exit_code))
}

/// What a person wants to know, on standard error: standard output is the guest's.
pub(super) fn tell(quiet: bool, outcome: &Outcome) {
    let mut lines = Vec::new();
    let wrong_books = outcome.report.audit != "clean";
    if !outcome.ending.is_orderly() {
        lines.push(format!("error: {}", outcome.ending));
        lines.extend(outcome.ending.cpu().into_iter().flat_map(CpuReport::register_lines));
    }
    if wrong_books {
        lines.push(format!("error: the memory service's audit failed: {}", outcome.report.audit));
    }
    lines.extend(outcome.console_error.iter().map(|error| format!("error: {error}")));
    let control = outcome.control_error.iter();
    lines.extend(control.map(|error| format!("error: the control socket was not served: {error}")));
    lines.extend(outcome.report.profile.iter().flat_map(ProfileReport::lines));
    if !quiet {
        lines.push(format!("slat: {}", outcome.report.summary()));
    }
    let mut stderr = io::stderr().lock();
    for line in lines {
        // A reader that has gone away is no reason to fail.
        let _ = writeln!(stderr, "{line}");
    }
}

pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Failure> {
    let failed = |source| Failure::Write { path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(value).map_err(|e| failed(e.into()))?;
    write_whole(path, &text)
}

/// JSON, or a picture by the file's name.
fn write_map(path: &Path, document: &Document) -> Result<(), Failure> {
    let is_picture =
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"));
    let text = if is_picture { picture(document) } else { document.to_lines() };
    write_whole(path, text.as_bytes())
}
