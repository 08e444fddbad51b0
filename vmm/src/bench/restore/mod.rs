//! What it takes to go on lazily from a snapshot: the start, beside that of `hello`; and the pages that the guest touches first, when it is
//! known which, beside one fault at a time.
//!
//! Programs are started as an operator would. The guest tells by its own clock what its pages took.

mod saved;

use std::process::Command;

use super::boot::first_byte;
use super::table::median;
use super::{BenchError, Goal, Rounds, Row, Table};

use saved::{Cache, Run, Saved};

/// How the guest touches its pages.
#[derive(Clone, Copy, Debug)]
struct Walk {
    pages: u64,
    /// The guest's word for it, and ours.
    order: (&'static str, &'static str),
}

const NEIGHBOURS: (&str, &str) = ("seq", "neighbouring");
const ANYWHERE: (&str, &str) = ("random", "scattered");

const WALKS: [Walk; 3] = [
    Walk { pages: 4096, order: NEIGHBOURS },
    Walk { pages: 16384, order: NEIGHBOURS },
    Walk { pages: 4096, order: ANYWHERE },
];

/// The figures of `slat bench restore`; `progress` is told what is being measured.
///
/// # Errors
/// [`BenchError`]: this program cannot be started again, or a guest failed.
pub fn restore(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    let mut table = Table::new("restore");
    for (index, walk) in WALKS.into_iter().enumerate() {
        let what = format!("{} {} pages", walk.pages, walk.order.1);
        progress(&format!("a snapshot for {what}"));
        let saved = Saved::new(&format!("again={} again.order={}", walk.pages, walk.order.0))?;
        if index == 0 {
            progress("the start");
            start(rounds, &saved, &mut table)?;
        }
        progress(&what);
        touch(rounds, walk, &saved, &mut table)?;
    }
    Ok(table)
}

/// From exec to the first byte.
fn start(rounds: Rounds, saved: &Saved, table: &mut Table) -> Result<(), BenchError> {
    let (mut plain, mut known, mut hello) = (Vec::new(), Vec::new(), Vec::new());
    let program = std::env::current_exe()?;
    // The first of each warms the page cache.
    for round in 0..=rounds.count() {
        let figures = (
            saved.lazily(false, Cache::Warm)?.first_byte_ms,
            saved.lazily(true, Cache::Warm)?.first_byte_ms,
            first_byte(Command::new(&program).args(["run", "--quiet"]).arg(saved.hello()))?,
        );
        if round > 0 {
            plain.push(figures.0);
            known.push(figures.1);
            hello.push(figures.2);
        }
    }
    let hello = median(&mut hello);
    for (figures, what) in
        [(&mut plain, "nothing known"), (&mut known, "4096 pages known to be needed")]
    {
        table.rows.push(Row::against(
            format!("lazy restore of 1 GiB, {what}, page cache warm: from exec to its first byte"),
            "ms",
            median(figures),
            "hello with 1 GiB",
            hello,
            Goal::RatioAtMost(1.2),
        ));
    }
    Ok(())
}

/// The pages that the guest needs first.
fn touch(rounds: Rounds, walk: Walk, saved: &Saved, table: &mut Table) -> Result<(), BenchError> {
    let Walk { pages, order: (_, order) } = walk;
    let goal = Goal::RatioAtLeast(20.0);
    for (cache, named) in [(Cache::Warm, "warm"), (Cache::Cold, "cold")] {
        if cache == Cache::Cold && !saved.can_be_cold()? {
            continue;
        }
        let (mut plain, mut known) = (Vec::new(), Vec::new());
        for _ in 0..rounds.count() {
            plain.push(saved.lazily(false, cache)?);
            known.push(saved.lazily(true, cache)?);
        }
        let row = |what: &str, figure: fn(&Run) -> f64, goal| {
            let of = |runs: &[Run]| median(&mut runs.iter().map(figure).collect::<Vec<_>>());
            let name =
                format!("{pages} {order} pages with their working set, page cache {named}: {what}");
            Row::faster_than(name, "ms", of(&known), "one fault at a time", of(&plain), goal)
        };
        table.rows.push(row("to touch them", |run| run.touch_ms, goal));
        table.rows.push(row("from exec until they are touched", |run| run.end_ms, Goal::None));
    }
    let mut there = Vec::new();
    for _ in 0..rounds.count() {
        there.push(saved.eagerly()?.touch_ms);
    }
    table.rows.push(Row::alone(
        format!("{pages} {order} pages, all memory read before the guest runs: to touch them"),
        "ms",
        median(&mut there),
        Goal::None,
    ));
    Ok(())
}
