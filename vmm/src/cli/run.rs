//! `slat run`

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use crate::machine::{Machine, Outcome};
use crate::vcpu::CpuReport;

use super::Failure;
use super::args::RunArgs;

/// Runs the machine; the exit code is the guest's verdict.
pub(super) fn run(args: &RunArgs, started: Instant) -> Result<ExitCode, Failure> {
    let config = args.config.load()?;
    let outcome = Machine::new(&config, started)?.run()?;
    tell(args, &outcome);
    if let Some(path) = &args.json_report {
        write_json(path, &outcome.report)?;
    }
    if let Some(path) = &args.memory_map {
        write_json(path, &outcome.map)?;
    }
    Ok(ExitCode::from(outcome.report.exit_code))
}

/// What a person wants to know, on standard error: standard output is the guest's.
fn tell(args: &RunArgs, outcome: &Outcome) {
    let mut lines = Vec::new();
    let wrong_books = outcome.report.audit != "clean";
    if !outcome.ending.is_orderly() || wrong_books {
        lines.push(format!("error: {}", outcome.ending));
        lines.extend(outcome.ending.cpu().into_iter().flat_map(CpuReport::register_lines));
    }
    if wrong_books {
        lines.push(format!("error: the memory service's audit failed: {}", outcome.report.audit));
    }
    lines.extend(outcome.console_error.iter().map(|error| format!("error: {error}")));
    if !args.quiet {
        lines.push(format!("slat: {}", outcome.report.summary()));
    }
    let mut stderr = io::stderr().lock();
    for line in lines {
        // A reader that has gone away is no reason to fail.
        let _ = writeln!(stderr, "{line}");
    }
}

/// Writes `value` whole or not at all: beside the file first, then in its place.
fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Failure> {
    let failed = |source| Failure::Write { path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(value).map_err(|e| failed(e.into()))?;
    let beside = path.with_extension("tmp");
    fs::write(&beside, text).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}
