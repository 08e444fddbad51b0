//! A store to a page of an image, from a thread that plays the vCPU: served by the tables, and by a bare loop.
#![allow(unsafe_code, reason = "stores to a window as a guest would, to time it without KVM")]

use std::sync::Arc;
use std::time::Instant;

use guest_mm::addr::{GfnRange, Gpa};
use guest_mm::protocol::Sound;

use crate::bench::table::median;
use crate::bench::{BenchError, Goal, Rounds, Row, Table};
use crate::machine::{Commons, MachineError, ServedRam};
use crate::ram::Ram;

use super::bare::BareCopies;
use super::{PAGE, RAM, Template};

/// Pages that are stored to in a round.
const PAGES: u64 = 4096;

pub(super) fn stores(
    rounds: Rounds,
    progress: &dyn Fn(&str),
    template: &Template,
    table: &mut Table,
) -> Result<(), BenchError> {
    let config = template.machine("hello")?;
    let commons = Arc::new(Commons::<Sound>::new(&config.memory)?);
    let (mut served, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=rounds.count() {
        progress(&format!("stores, round {round} of {}", rounds.count()));
        // Called on a fault thread, while the store waits: the only way out is out.
        let on_stop = |error: &guest_mm::fault::FaultError| {
            eprintln!("error: the benchmark's guest was stopped: {error}");
            std::process::exit(1);
        };
        let ram = ServedRam::on(&commons, &config.memory, Box::new(on_stop))?;
        let all = GfnRange::from_bytes(Gpa::new(0), RAM).map_err(MachineError::from)?;
        ram.guest().populate(all).map_err(MachineError::from)?;
        let figures = time_stores(ram.slots()[0].hva as *mut u8);
        let loop_figures = time_stores(BareCopies::new(RAM)?.window());
        // The first warms caches, and has the host make the frames of the copies.
        if round > 0 {
            served.extend(figures);
            bare.extend(loop_figures);
        }
    }
    let p99 = |figures: &mut Vec<f64>| {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() * 99 / 100]
    };
    let baseline = "bare loop: read, copy 4 KiB, mmap, wake";
    let (p50s, p50b) = (median(&mut served), median(&mut bare));
    let (p99s, p99b) = (p99(&mut served), p99(&mut bare));
    let goal = Goal::RatioAtMost(1.2);
    table.rows.extend([
        Row::against("store to a page of an image, p50", "us", p50s, baseline, p50b, goal),
        Row::against("store to a page of an image, p99", "us", p99s, baseline, p99b, Goal::None),
    ]);
    Ok(())
}

/// The first store to each of some pages, in microseconds each.
fn time_stores(window: *mut u8) -> Vec<f64> {
    (0..PAGES)
        .map(|page| {
            // SAFETY: the window is mapped for RAM bytes while its owner lives, and nothing else accesses it; the
            // load is of a page that is there, the store waits until its fault is served.
            unsafe {
                let at = window.add((page * PAGE) as usize);
                let old = at.read_volatile();
                let start = Instant::now();
                at.write_volatile(!old);
                start.elapsed().as_secs_f64() * 1e6
            }
        })
        .collect()
}
