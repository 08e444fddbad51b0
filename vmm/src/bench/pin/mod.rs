//! What a pin costs a device: beside the least that it can cost, the kernel's pins, a map under a lock, and no
//! pin at all.

mod floor;
mod mapped;
mod pages;
mod served;
mod tail;
mod threads;
mod tree;
mod uring;

use guest_mm::addr::PageSize;

use floor::Floor;
use mapped::Mapped;
use pages::{BLOCK, PAGES, shuffled};
use served::Served;
use threads::rate;
use tree::LockedTree;
use uring::{MOST, Ring};

use super::table::median;
use super::turns::{in_turns, time, time_each};
use super::{BenchError, Goal, Rounds, Row, Table};

/// Pages of a batch.
const BATCH: usize = 64;
/// Times over that the hot page is pinned in a round.
const HOT: usize = 1 << 16;
/// Pages that are registered one by one in a round: each takes microseconds.
const ONE_BY_ONE: usize = 1 << 10;

/// The figures of `slat bench pin`; `progress` is told what is being measured.
///
/// # Errors
/// [`BenchError`]: something could not be set up.
pub fn pin(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    let mut table = Table::new("pin");
    let bench = Bench {
        served: Served::new(PageSize::Size4K)?,
        floor: Floor::new(),
        tree: LockedTree::new(),
        pages: shuffled(PAGES),
        rounds: rounds.count() * 4,
    };
    progress("one page");
    let page_ns = bench.one_page(&mut table)?;
    progress("batches");
    bench.batches(&mut table)?;
    progress("blocks");
    bench.blocks(&mut table)?;
    progress("io_uring");
    bench.kernel(&mut table, page_ns)?;
    progress("threads");
    bench.threads(&mut table);
    progress("while blocks collapse");
    bench.under_fire(&mut table)?;
    Ok(table)
}

struct Bench {
    served: Served,
    floor: Floor,
    tree: LockedTree,
    pages: Vec<u64>,
    rounds: usize,
}

impl Bench {
    /// One page at a time, all over RAM and always the same; what a random one takes, in nanoseconds.
    fn one_page(&self, table: &mut Table) -> Result<f64, BenchError> {
        let Bench { served, floor, tree, pages, rounds } = self;
        let mapped = Mapped::new()?;
        let [random, random_floor, random_tree, random_mapped] = in_turns(
            *rounds,
            [
                &mut || Ok(time_each(pages, |page| served.pin_unpin(page))),
                &mut || Ok(time_each(pages, |page| floor.pin_unpin(page))),
                &mut || Ok(time_each(pages, |page| tree.pin_unpin(page))),
                &mut || Ok(time_each(pages, |page| mapped.slice(page))),
            ],
        )?;
        let hot_pages = vec![PAGES / 3; HOT];
        let [hot, hot_floor] = in_turns(
            *rounds,
            [&mut || Ok(time_each(&hot_pages, |page| served.pin_unpin(page))), &mut || {
                Ok(time_each(&hot_pages, |page| floor.pin_unpin(page)))
            }],
        )?;
        let least = "guard, 4 loads, 2 atomic adds, 2 looks back";
        table.rows.extend([
            Row::against(
                "pin and unpin of a random 4 KiB page",
                "ns",
                random,
                least,
                random_floor,
                Goal::RatioAtMost(1.4),
            ),
            Row::against(
                "pin and unpin of one hot 4 KiB page",
                "ns",
                hot,
                least,
                hot_floor,
                Goal::RatioAtMost(1.4),
            ),
            Row::faster_than(
                "pin and unpin of a random page, one thread",
                "ns",
                random,
                "RwLock<BTreeMap> and a count",
                random_tree,
                Goal::RatioAtLeast(5.0),
            ),
            Row::against(
                "the price of a pin: a random page",
                "ns",
                random,
                "vm-memory's get_slice, which pins nothing",
                random_mapped,
                Goal::RatioAtMost(4.0),
            ),
        ]);
        Ok(random)
    }

    fn batches(&self, table: &mut Table) -> Result<(), BenchError> {
        let Bench { served, floor, pages, rounds, .. } = self;
        let mut batch = served.batch(BATCH);
        let mut held = Vec::with_capacity(BATCH);
        let chunks: Vec<&[u64]> = pages.chunks_exact(BATCH).collect();
        let a_page = |ns: f64| ns / BATCH as f64;
        let mapped = Mapped::new()?;
        let [batched, batched_floor, slice] = in_turns(
            *rounds,
            [
                &mut || Ok(a_page(time_each(&chunks, |c| served.pin_unpin_batch(c, &mut batch)))),
                &mut || Ok(a_page(time_each(&chunks, |c| floor.pin_unpin_batch(c, &mut held)))),
                &mut || Ok(time_each(pages, |page| mapped.slice(page))),
            ],
        )?;
        table.rows.extend([
            Row::against(
                "64 random pages in a batch, per page",
                "ns",
                batched,
                "the same, one guard for 64",
                batched_floor,
                Goal::RatioAtMost(1.2),
            ),
            Row::against(
                "the price of a pin: a page of a batch",
                "ns",
                batched,
                "vm-memory's get_slice, which pins nothing",
                slice,
                Goal::RatioAtMost(4.0),
            ),
        ]);
        Ok(())
    }

    fn blocks(&self, table: &mut Table) -> Result<(), BenchError> {
        let Bench { served, pages, rounds, .. } = self;
        let huge = Served::new(PageSize::Size2M)?;
        let blocks = shuffled(PAGES / BLOCK).repeat(64);
        let [block, page] = in_turns(
            *rounds,
            [&mut || Ok(time_each(&blocks, |block| huge.pin_unpin_block(block))), &mut || {
                Ok(time_each(pages, |page| served.pin_unpin(page)))
            }],
        )?;
        table.rows.push(Row::against(
            "pin and unpin of 2 MiB in one leaf",
            "ns",
            block,
            "a random page",
            page,
            Goal::RatioAtMost(2.0),
        ));
        Ok(())
    }

    /// The kernel's pins.
    fn kernel(&self, table: &mut Table, page_ns: f64) -> Result<(), BenchError> {
        let Bench { served, pages, rounds, .. } = self;
        let name = |how: &str| format!("pin and unpin of a random page, beside io_uring {how}");
        let (bulk_goal, single_goal) = (Goal::RatioAtLeast(5.0), Goal::RatioAtLeast(80.0));
        let ring = match Ring::new() {
            Ok(ring) => ring,
            // Containers often forbid it. What was not measured does not hold.
            Err(error) => {
                for (how, goal) in [("in bulk", bulk_goal), ("one by one", single_goal)] {
                    let mut row = Row::alone(name(how), "ns", page_ns, goal);
                    row.baseline = format!("io_uring is not to be had: {error}");
                    table.rows.push(row);
                }
                return Ok(());
            }
        };
        let singles: Vec<u64> = shuffled(MOST)[..ONE_BY_ONE].to_vec();
        let [page, bulk, single] = in_turns(
            *rounds,
            [
                &mut || Ok(time_each(pages, |page| served.pin_unpin(page))),
                &mut || {
                    let (ns, done) = time(|| ring.in_bulk());
                    done?;
                    Ok(ns / MOST as f64)
                },
                &mut || {
                    let (ns, done) = time(|| singles.iter().try_for_each(|&page| ring.one(page)));
                    done?;
                    Ok(ns / singles.len() as f64)
                },
            ],
        )?;
        table.rows.extend([
            Row::faster_than(
                name("in bulk"),
                "ns",
                page,
                "REGISTER_BUFFERS and UNREGISTER of 16,384 pages, per page",
                bulk,
                bulk_goal,
            ),
            Row::faster_than(
                name("one by one"),
                "ns",
                page,
                "REGISTER_BUFFERS and UNREGISTER of one page",
                single,
                single_goal,
            ),
        ]);
        Ok(())
    }

    /// One thread and two, each on pages of its own.
    fn threads(&self, table: &mut Table) {
        let Bench { served, floor, tree, pages, rounds } = self;
        let (low, high): (Vec<u64>, Vec<u64>) = pages.iter().partition(|&&page| page < PAGES / 2);
        let (one, two) = (&[&low[..]][..], &[&low[..], &high[..]][..]);
        let mut rates: [Vec<f64>; 5] = Default::default();
        for _ in 0..*rounds {
            let round = [
                rate(one, |page| served.pin_unpin(page)),
                rate(two, |page| served.pin_unpin(page)),
                rate(one, |page| floor.pin_unpin(page)),
                rate(two, |page| floor.pin_unpin(page)),
                rate(two, |page| tree.pin_unpin(page)),
            ];
            rates.iter_mut().zip(round).for_each(|(rates, rate)| rates.push(rate));
        }
        let [served_1, served_2, floor_1, floor_2, tree_2] =
            rates.map(|mut rates| median(&mut rates));
        table.rows.extend([
            Row::against(
                "pins of 2 threads on pages of their own",
                "pins/us",
                served_2,
                "1 thread",
                served_1,
                Goal::RatioAtLeast(1.9),
            ),
            Row::against(
                "the same of the least that a pin can be",
                "pins/us",
                floor_2,
                "1 thread",
                floor_1,
                Goal::None,
            ),
            Row::against(
                "pins of 2 threads",
                "pins/us",
                served_2,
                "RwLock<BTreeMap> and a count",
                tree_2,
                Goal::RatioAtLeast(8.0),
            ),
        ]);
    }

    /// Single pins while blocks are promoted and split.
    fn under_fire(&self, table: &mut Table) -> Result<(), BenchError> {
        let Bench { served, pages, rounds, .. } = self;
        let (mut p50, mut p99, mut collapses) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..*rounds {
            let round = tail::tail(served, pages)?;
            p50.push(round.p50);
            p99.push(round.p99);
            collapses.push(round.collapses);
        }
        table.rows.extend([
            Row::against(
                "pin and unpin while blocks are promoted and split, p99",
                "cycles",
                median(&mut p99),
                "p50",
                median(&mut p50),
                Goal::RatioAtMost(20.0),
            ),
            Row::alone("blocks promoted meanwhile", "blocks/s", median(&mut collapses), Goal::None),
        ]);
        Ok(())
    }
}
