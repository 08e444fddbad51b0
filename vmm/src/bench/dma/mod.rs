//! What pinned DMA costs a disk, and what it leaves to others: each request pins its pages, all RAM is pinned once and for
//! good, or memory is translated and not pinned at all.

mod bare;
mod blocks;
mod bridge;
mod served;
mod tap;

use std::time::Duration;

use devices::dma::Dma;

use super::table::median;
use super::{BenchError, Goal, Rounds, Row, Table};

use bare::Bare;
use bridge::Bridge;
use served::{Bench, DISK, Done, RAM, Served, Work, memory_file, plain};
use tap::Cable;

/// Requests of one kind: their name, what they are, and how many a round has.
struct Kind {
    name: &'static str,
    work: Work,
    requests: u32,
    /// What pinning may cost.
    goal: Goal,
}

const fn work(bytes: u32, depth: u16, sequential: bool) -> Work {
    Work { bytes, depth, sequential, buffers: u64::MAX }
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "4 KiB random reads, 32 under way",
        work: work(4 << 10, 32, false),
        requests: 100_000,
        goal: Goal::RatioAtMost(1.05),
    },
    Kind {
        name: "4 KiB random reads, one under way",
        work: work(4 << 10, 1, false),
        requests: 50_000,
        goal: Goal::None,
    },
    Kind {
        name: "64 KiB random reads, 16 under way",
        work: work(64 << 10, 16, false),
        requests: 10_000,
        goal: Goal::None,
    },
    Kind {
        name: "128 KiB reads in order, 8 under way",
        work: work(128 << 10, 8, true),
        requests: 4_000,
        goal: Goal::None,
    },
    Kind {
        name: "2 MiB reads in order, 4 under way",
        work: work(2 << 20, 4, true),
        requests: 256,
        // What cannot be told from nothing.
        goal: Goal::RatioAtMost(1.02),
    },
];

/// Measures it.
///
/// # Errors
/// [`BenchError`]: there are no figures.
pub fn dma(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    let file = memory_file("slat-bench-disk", DISK)?;
    let served = Served::new()?;
    let others = Served::new()?;
    let (plain, memory) = plain()?;
    let mut table = Table::new("dma");
    {
        let mut pinned = Bench::new(&served.pinning(), served.seen()?, &file)?;
        let mut standing = Bench::new(&others.standing(RAM)?, others.seen()?, &file)?;
        let mut unpinned = Bench::new(&plain, memory.clone(), &file)?;
        for kind in &KINDS {
            progress(kind.name);
            let found = measure(rounds, kind, (&mut pinned, &mut standing, &mut unpinned))?;
            rows(&mut table, kind, &found);
        }
        progress("a bare io_uring");
        bare(rounds, &mut pinned, &mut Bare::new(served.seen()?, &file)?, &mut table)?;
    }
    drop((served, others, plain, memory));
    progress("from TAP to TAP");
    taps(rounds, &mut table)?;
    progress("collapse under load");
    under_load(rounds, &mut table)?;
    Ok(table)
}

/// Requests pinned one by one, for good, and not at all.
struct Figures {
    pinned: Done,
    standing: Done,
    plain: Done,
    /// The median of the rounds' ratios: what disturbs a round disturbs both.
    ratio: f64,
}

fn measure<A: Dma, B: Dma, C: Dma>(
    rounds: Rounds,
    kind: &Kind,
    (pinned, standing, plain): (&mut Bench<A>, &mut Bench<B>, &mut Bench<C>),
) -> Result<Figures, BenchError> {
    let requests = kind.requests / if rounds == Rounds::Quick { 10 } else { 2 };
    let mut figures = [const { Vec::new() }; 3];
    let mut ratios = Vec::new();
    for round in 0..=rounds.count() * 2 {
        let once = [
            pinned.run(kind.work, requests)?,
            standing.run(kind.work, requests)?,
            plain.run(kind.work, requests)?,
        ];
        // The first warms what there is to warm.
        if round > 0 {
            ratios.push(once[0].seconds / once[2].seconds);
            figures.iter_mut().zip(once).for_each(|(figures, once)| figures.push(once));
        }
    }
    let [pinned, standing, plain] = figures.map(|figures| middle(&figures));
    Ok(Figures { pinned, standing, plain, ratio: median(&mut ratios) })
}

fn middle(rounds: &[Done]) -> Done {
    let of = |get: fn(&Done) -> f64| median(&mut rounds.iter().map(get).collect::<Vec<_>>());
    Done { seconds: of(|done| done.seconds), cpu: of(|done| done.cpu) }
}

fn rows(table: &mut Table, kind: &Kind, found: &Figures) {
    let us = |seconds: f64| seconds * 1e6;
    let rate = |done: Done| 1.0 / done.seconds;
    table.rows.push(Row::alone(
        format!("{}, pinned for each request", kind.name),
        "requests/s",
        rate(found.pinned),
        Goal::None,
    ));
    table.rows.push(
        Row::against(
            format!("{}: time of a request", kind.name),
            "us",
            us(found.pinned.seconds),
            "translated by vm-memory, nothing pinned",
            us(found.plain.seconds),
            Goal::None,
        )
        .with_ratio(found.ratio, kind.goal),
    );
    table.rows.push(Row::against(
        format!("{}: the same beside all RAM pinned for good", kind.name),
        "us",
        us(found.pinned.seconds),
        "all RAM pinned for good",
        us(found.standing.seconds),
        Goal::None,
    ));
    table.rows.push(Row::against(
        format!("{}: processor for a request", kind.name),
        "us",
        us(found.pinned.cpu),
        "nothing pinned",
        us(found.plain.cpu),
        Goal::None,
    ));
}

fn bare<D: Dma>(
    rounds: Rounds,
    device: &mut Bench<D>,
    bare: &mut Bare,
    table: &mut Table,
) -> Result<(), BenchError> {
    let requests = if rounds == Rounds::Quick { 500 } else { 4000 };
    let work = work(128 << 10, 8, true);
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds.count() * 2 {
        let (device, bare) = (device.run(work, requests)?, bare.run(work, requests)?);
        if round > 0 {
            ratios.push(bare.seconds / device.seconds);
            ours.push(device);
            theirs.push(bare);
        }
    }
    let rate = |done: &[Done]| f64::from(work.bytes) / middle(done).seconds / 1e9;
    table.rows.push(
        Row::against(
            "128 KiB reads in order, 8 under way",
            "GB/s",
            rate(&ours),
            "a bare io_uring loop, the same file and buffers",
            rate(&theirs),
            Goal::None,
        )
        .with_ratio(median(&mut ratios), Goal::RatioAtLeast(0.85)),
    );
    Ok(())
}

/// Frames from one device to another. Where there is no bridge to be had, the rows are left out, and it is said why.
fn taps(rounds: Rounds, table: &mut Table) -> Result<(), BenchError> {
    // A thread of its own: its network namespace is.
    let measured = std::thread::spawn(move || cables(rounds)).join();
    let rows = match measured.expect("the thread does not panic")? {
        Ok(rows) => rows,
        Err(reason) => {
            eprintln!("from TAP to TAP: not measured, {reason}");
            return Ok(());
        }
    };
    table.rows.extend(rows);
    Ok(())
}

fn cables(rounds: Rounds) -> Result<Result<[Row; 2], std::io::Error>, BenchError> {
    let frames = if rounds == Rounds::Quick { 5_000 } else { 40_000 };
    let served = Served::new()?;
    let (plain, memory) = plain()?;
    let (one, other) = match (Bridge::new(), Bridge::new()) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
    };
    let mut pinned = Cable::new(&served.pinning(), served.seen()?, one.taps)?;
    let mut unpinned = Cable::new(&plain, memory, other.taps)?;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds.count() {
        let (pinned, unpinned) = (pinned.run(frames)?, unpinned.run(frames)?);
        if round > 0 {
            ratios.push(pinned.seconds / unpinned.seconds);
            ours.push(pinned);
            theirs.push(unpinned);
        }
    }
    let rate = |done: &[Done]| f64::from(tap::FRAME) * 8.0 / middle(done).seconds / 1e9;
    let us = |done: &[Done]| middle(done).seconds * 1e6;
    Ok(Ok([
        Row::alone(
            "TAP to TAP, frames of 1514 bytes, pinned for each",
            "Gbit/s",
            rate(&ours),
            Goal::None,
        ),
        Row::against(
            "TAP to TAP: time of a frame",
            "us",
            us(&ours),
            "nothing pinned",
            us(&theirs),
            Goal::None,
        )
        .with_ratio(median(&mut ratios), Goal::None),
    ]))
}

/// What a collapser and a balloon can do meanwhile.
fn under_load(rounds: Rounds, table: &mut Table) -> Result<(), BenchError> {
    let file = memory_file("slat-bench-disk", DISK)?;
    let time = Duration::from_millis(if rounds == Rounds::Quick { 500 } else { 3000 });
    let mut served = blocks::scattered()?;
    let dma = served.pinning();
    let pinned = blocks::under_load(&mut served, &dma, &file, time)?;
    drop((dma, served));
    let mut served = blocks::scattered()?;
    let dma = served.standing(blocks::BYTES)?;
    let standing = blocks::under_load(&mut served, &dma, &file, time)?;
    drop((dma, served));
    let stays = 100.0 - standing.huge;
    table.rows.extend([
        Row::alone(
            "scattered blocks that became huge under 4 KiB DMA at full rate, pinned for each request",
            "%",
            pinned.huge,
            Goal::AtLeast(95.0),
        ),
        Row::alone(
            "scattered blocks that could not, all RAM pinned for good",
            "%",
            stays,
            Goal::AtLeast(100.0),
        ),
        Row::against(
            "memory that a collapse or a balloon could not touch meanwhile",
            "KiB",
            pinned.pinned / 1024.0,
            "all RAM pinned for good",
            standing.pinned / 1024.0,
            Goal::None,
        ),
        Row::against(
            "requests meanwhile, pinned for each request",
            "requests/s",
            pinned.rate,
            "all RAM pinned for good",
            standing.rate,
            Goal::None,
        ),
    ]);
    Ok(())
}
