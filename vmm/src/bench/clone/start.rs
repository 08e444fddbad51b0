//! The start of a clone, and what one more takes of the host's memory.

use std::sync::Arc;

use crate::bench::table::median;
use crate::bench::{BenchError, Goal, Rounds, Row, Table};
use crate::config::MachineConfig;
use crate::machine::{Clones, ClonesReport, Commons, run_one};

use super::{RAM, Template, config};

/// `hello` over a template that is loaded, and on memory of its own: from the start of its building to its first byte.
pub(super) fn start(
    rounds: Rounds,
    progress: &dyn Fn(&str),
    template: &Template,
    table: &mut Table,
) -> Result<(), BenchError> {
    let (over, alone) = (template.machine("hello")?, config("", "hello")?);
    let [shared, own] = [&over, &alone].map(|config| Commons::new(&config.memory).map(Arc::new));
    let (shared, own) = (shared?, own?);
    // Loads all of it.
    checked(run_one(&shared, &template.machine("clone")?)?)?;
    let (mut clones, mut plain) = (Vec::new(), Vec::new());
    // The first of each warms caches.
    for round in 0..=rounds.count() * 8 {
        if round % 8 == 0 {
            progress(&format!("start {round} of {}", rounds.count() * 8));
        }
        let figures = (first_byte(&shared, &over)?, first_byte(&own, &alone)?);
        if round > 0 {
            clones.push(figures.0);
            plain.push(figures.1);
        }
    }
    table.rows.push(Row::against(
        "start of a clone, to its first byte",
        "ms",
        median(&mut clones),
        "the same guest without a template",
        median(&mut plain),
        Goal::RatioAtMost(1.3),
    ));
    Ok(())
}

fn first_byte(commons: &Arc<Commons>, config: &MachineConfig) -> Result<f64, BenchError> {
    let report = checked(run_one(commons, config)?)?;
    let us = report.first_output_us.ok_or(BenchError::Guest("it said nothing".into()))?;
    Ok(us as f64 / 1e3)
}

fn checked(report: crate::machine::CloneReport) -> Result<crate::machine::CloneReport, BenchError> {
    match (report.exit_code, &*report.audit) {
        (0, "clean") => Ok(report),
        _ => Err(BenchError::Guest(format!("{}; audit: {}", report.reason, report.audit))),
    }
}

/// Clones that are compared with fewer.
const MANY: u32 = 24;
const FEW: u32 = 8;

/// What one more clone takes, by what it writes.
pub(super) fn memory(
    progress: &dyn Fn(&str),
    template: &Template,
    table: &mut Table,
) -> Result<(), BenchError> {
    for written in [0, 64, 1024] {
        progress(&format!("clones that write {written} pages"));
        let mut config = template.machine("clone")?;
        config.boot.cmdline.value = format!("write={written}");
        let [few, many] = [FEW, MANY].map(|count| Clones { config: &config, count }.run());
        let (few, many) = (taken(few?)?, taken(many?)?);
        let each = (many - few) / f64::from(MANY - FEW) / f64::from(1 << 20);
        table.rows.push(Row::against(
            format!("PSS of one more clone that reads all and writes {written} pages"),
            "MiB",
            each,
            "its RAM",
            (RAM >> 20) as f64,
            Goal::None,
        ));
    }
    Ok(())
}

fn taken(report: ClonesReport) -> Result<f64, BenchError> {
    let (before, after) = (report.before.pss_bytes, report.after.pss_bytes);
    report.clones.into_iter().try_for_each(|clone| checked(clone).map(drop))?;
    Ok(after.saturating_sub(before) as f64)
}
