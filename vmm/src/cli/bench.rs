//! `slat bench`

use std::io::{IsTerminal, Write, stderr};

use crate::bench::{self, BenchError, Rounds, Table};

use super::args::{BenchCommand, BenchOptions};
use super::{Failure, print};

/// One of the benchmarks.
type Measure = fn(Rounds, &dyn Fn(&str)) -> Result<Table, BenchError>;

/// Measures, and prints the table.
pub(super) fn run(command: &BenchCommand) -> Result<(), Failure> {
    let (options, measure): (&BenchOptions, Measure) = match command {
        BenchCommand::Fault(options) => (options, bench::fault),
        BenchCommand::Boot(options) => (options, bench::boot),
        BenchCommand::Pin(options) => (options, bench::pin),
        BenchCommand::Collapse(options) => (options, bench::collapse),
        BenchCommand::Dma(options) => (options, bench::dma),
        BenchCommand::Clone(options) => (options, bench::clone),
        BenchCommand::Share(options) => (options, bench::share),
        BenchCommand::Postcopy(options) => (options, bench::postcopy),
        BenchCommand::Restore(options) => (options, bench::restore),
        BenchCommand::Ring3(options) => (options, bench::ring3),
    };
    let rounds = if options.quick { Rounds::Quick } else { Rounds::Full };
    let table = measure(rounds, &progress)?;
    clear();
    if options.json {
        let json = serde_json::to_string(&table).map_err(|e| Failure::Output(e.into()))?;
        return print(&format!("{json}\n"));
    }
    print(&table.text())
}

/// One line that is written over, for a person who waits.
fn progress(what: &str) {
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r\x1b[Kmeasuring: {what}");
    }
}

fn clear() {
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r\x1b[K");
    }
}
