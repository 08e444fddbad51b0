//! What it costs to find pages of the same bytes, to merge them, and to part them again: beside a plain read of the same
//! memory, and beside a bare loop that does what no copy on write can leave out.

mod parted;
mod scanned;
mod served;

use super::turns::{in_turns, time};
use super::{BenchError, Goal, Rounds, Row, Table};

use parted::{BareShared, Mapping, Seen};
use scanned::Distinct;
use served::Merged;

/// Pages that are merged and parted in a round.
const PAGES: u64 = 2048;
/// Bytes of memory whose pages all differ.
const SCANNED: u64 = 512 << 20;

/// The figures of `slat bench share`; `progress` is told what is being measured.
///
/// # Errors
/// [`BenchError`]: something could not be set up.
pub fn share(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    let mut table = Table::new("share");
    let rounds = rounds.count();
    progress("a scan for duplicates");
    scan(&mut table, rounds)?;
    progress("merging");
    merge(&mut table, rounds)?;
    progress("stores to merged pages");
    part(&mut table, rounds)?;
    Ok(table)
}

/// A round of the scanner over pages that all differ, and none of which changes.
fn scan(table: &mut Table, rounds: usize) -> Result<(), BenchError> {
    let memory = Distinct::new(SCANNED)?;
    let bandwidth = |ns: f64| SCANNED as f64 / ns;
    let [scanned, read] = in_turns(
        rounds,
        [
            &mut || {
                let (ns, done) = time(|| memory.scan());
                done.map(|()| bandwidth(ns))
            },
            &mut || {
                let (ns, done) = time(|| memory.read());
                done.map(|()| bandwidth(ns))
            },
        ],
    )?;
    table.rows.push(Row::against(
        "scan for duplicates, 512 MiB of pages that differ",
        "GB/s",
        scanned,
        "a plain sum of the same memory, one core",
        read,
        Goal::RatioAtLeast(0.5),
    ));
    Ok(())
}

/// Pages of one content: the scanner's round that merges them, and their parting by request.
fn merge(table: &mut Table, rounds: usize) -> Result<(), BenchError> {
    let pages = Merged::new(PAGES)?;
    let a_page = |ns: f64| ns / 1e3 / PAGES as f64;
    let mut unmerged = Vec::new();
    let [merged] = in_turns(
        rounds,
        [&mut || {
            pages.note()?;
            let (ns, done) = time(|| pages.merge());
            done?;
            let (unmerging, done) = time(|| pages.unmerge());
            done?;
            unmerged.push(a_page(unmerging));
            Ok(a_page(ns))
        }],
    )?;
    table.rows.extend([
        Row::alone("merging a page, its checksum included", "us", merged, Goal::None),
        Row::alone(
            "unmerging a page by request",
            "us",
            super::table::median(&mut unmerged),
            Goal::None,
        ),
    ]);
    Ok(())
}

/// Stores to merged pages, from a plain thread.
fn part(table: &mut Table, rounds: usize) -> Result<(), BenchError> {
    let pages = Merged::new(PAGES)?;
    let bare = BareShared::new(PAGES, Mapping::Joined)?;
    let apart = BareShared::new(PAGES, Mapping::Apart)?;
    for (seen, name) in [
        (Seen::No, "store to a merged page that was not read since"),
        (Seen::Yes, "store to a merged page that was read"),
    ] {
        let [served, by_hand, left_apart] = in_turns(
            rounds,
            [
                &mut || {
                    pages.note()?;
                    pages.merge()?;
                    if seen == Seen::Yes {
                        pages.read_each();
                    }
                    Ok(pages.store_each())
                },
                &mut || {
                    bare.share(seen)?;
                    Ok(bare.store_each())
                },
                &mut || {
                    apart.share(seen)?;
                    Ok(apart.store_each())
                },
            ],
        )?;
        table.rows.push(Row::against(
            name,
            "us",
            served,
            match seen {
                Seen::No => "bare loop: read, copy 4 KiB, map",
                Seen::Yes => "bare loop: read, copy 4 KiB, map and join",
            },
            by_hand,
            Goal::RatioAtMost(1.2),
        ));
        if seen == Seen::Yes {
            let name = "the same by a bare loop that leaves a mapping for every page";
            table.rows.push(Row::alone(name, "us", left_apart, Goal::None));
        }
    }
    Ok(())
}

/// The median of the times that `store` takes for each of `pages`, in microseconds.
fn median_of_each(pages: u64, store: impl Fn(u64)) -> f64 {
    let mut us: Vec<f64> = (0..pages).map(|page| time(|| store(page)).0 / 1e3).collect();
    super::table::median(&mut us)
}
