//! `touch`: walks all RAM above its image. Times the first touch of every page, and checks that nothing that was written is
//! lost and nothing that was not is there. With `dma=` it shares its pages with devices instead ([`dma`]).
#![no_std]
#![no_main]

mod again;
mod dma;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rt::boot_params::Boot;
use rt::cmdline::{BadValue, Cmdline, Expected};
use rt::histogram::Histogram;
use rt::mp_table::MAX_CPUS;
use rt::permutation::{Permutation, hash};
use rt::ram::{PAGE, Pages, WORDS};
use rt::smp::{self, Barrier};
use rt::tsc::{self, Frequency};
use rt::{exit, println};

use again::Again;
use dma::Dma;

rt::main!(main);

/// Lines about wrong words; the rest is only counted.
const MAX_REPORTS: u64 = 20;
/// Distance, in pages, of neighbours in `order=stride`: a 2 MiB block.
const COLUMN: u64 = 512;

static FIRST_TOUCH: [Histogram; MAX_CPUS] = [const { Histogram::new() }; MAX_CPUS];
static WRONG: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
enum Order {
    Sequential,
    Reverse,
    Random(Permutation),
    Stride,
}

#[derive(Clone, Copy)]
enum Fill {
    Word,
    Page,
}

#[derive(Clone, Copy)]
enum First {
    Write,
    Read,
}

struct Plan {
    cpus: usize,
    pages: Pages,
    order: Order,
    passes: u64,
    /// How often everything is read back behind the passes.
    reads: u64,
    fill: Fill,
    /// Pages of different contents, one of them zeroes; none: all differ.
    kinds: Option<u64>,
    first: First,
    zero: bool,
    verify: bool,
    frequency: Frequency,
    again: Option<Again>,
}

fn main(boot: &Boot) -> u8 {
    let run = Dma::parse(boot).and_then(|dma| match dma {
        Some(dma) => Ok(work(boot, dma.cpus, |cpu, barrier| dma.work(cpu, barrier))),
        None => {
            let plan = Plan::parse(boot)?;
            println!("touch: {} pages, {} cpus", plan.pages.len(), plan.cpus);
            Ok(work(boot, plan.cpus, |cpu, barrier| plan.work(cpu, barrier)))
        }
    });
    run.unwrap_or_else(|bad| {
        println!("touch: {bad}");
        exit::BAD_VALUE
    })
}

/// Has every CPU work; the verdict.
fn work(boot: &Boot, cpus: usize, work: impl Fn(usize, &Barrier) + Sync) -> u8 {
    let barrier = Barrier::new(cpus);
    if let Err(error) = smp::run(boot, cpus, &|cpu| work(cpu, &barrier)) {
        println!("touch: {error}");
        return exit::FAILED;
    }
    if WRONG.load(Relaxed) == 0 { 0 } else { exit::FAILED }
}

impl Plan {
    fn parse(boot: &Boot) -> Result<Plan, BadValue<'static>> {
        let line = boot.cmdline();
        let step = line.number_in("stride", PAGE, 1 << 39, PAGE)?;
        if !step.is_multiple_of(PAGE) {
            let value = line.get("stride").unwrap_or("");
            return Err(BadValue {
                key: "stride",
                value,
                expected: Expected::Words("a multiple of 4096"),
            });
        }
        let limit = line.number("limit")?.unwrap_or(u64::MAX);
        let pages = Pages::above_image(boot, step, limit);
        Ok(Plan {
            cpus: smp::count(boot)?,
            order: Order::parse(line, pages.len())?,
            passes: line.number_in("passes", 1, u64::MAX, 1)?,
            reads: line.number_in("reads", 0, u64::MAX, 0)?,
            fill: line.choice(
                "fill",
                &[("word", Fill::Word), ("page", Fill::Page)],
                Fill::Word,
                "word or page",
            )?,
            kinds: match line.number_in("kinds", 0, 1 << 32, 0)? {
                0 => None,
                kinds => Some(kinds),
            },
            first: line.choice(
                "first",
                &[("write", First::Write), ("read", First::Read)],
                First::Write,
                "write or read",
            )?,
            zero: line.switch("zero", true)?,
            verify: line.switch("verify", true)?,
            frequency: Frequency::find(line)?,
            again: Again::parse(boot, pages.len())?,
            pages,
        })
    }

    /// What every CPU does. CPU 0 also measures and reports.
    fn work(&self, cpu: usize, barrier: &Barrier) {
        let mut first_pass = 0;
        for pass in 0..self.passes {
            let written = timed(barrier, || {
                self.each_page(cpu, |page| self.write(page, pass, &FIRST_TOUCH[cpu]));
            });
            let read = timed(barrier, || {
                if self.verify {
                    self.each_page(cpu, |page| self.read_back(page, pass));
                }
            });
            if cpu == 0 {
                self.report_pass(pass, written, read);
            }
            if pass == 0 {
                first_pass = written;
            }
        }
        for read in 0..self.reads {
            if cpu == 0 && read == 0 {
                println!("touch: reads");
            }
            barrier.wait();
            self.each_page(cpu, |page| self.read_back(page, self.passes - 1));
        }
        barrier.wait();
        if cpu == 0 {
            self.report(first_pass);
            self.again.iter().for_each(|again| again.work(self));
        }
    }

    /// Visits this CPU's even share of the pages, in order.
    fn each_page(&self, cpu: usize, mut visit: impl FnMut(u64)) {
        let (cpus, pages) = (self.cpus as u64, self.pages.len());
        let share = |n: u64| pages * n / cpus;
        for i in share(cpu as u64)..share(cpu as u64 + 1) {
            visit(self.order.page(i, pages));
        }
    }

    fn write(&self, page: u64, pass: u64, first_touch: &Histogram) {
        let words = self.pages.words(page);
        let address = self.pages.address(page);
        let (from, to) = self.filled(address);
        if pass > 0 {
            (from..to).for_each(|i| words[i].store(self.pattern(address, i, pass), Relaxed));
            return;
        }
        // An exchange is one access, and a write: the word's old value costs no read fault of its own.
        let start = tsc::now();
        let old = match self.first {
            First::Read => words[from].load(Relaxed),
            First::Write => words[from].swap(self.pattern(address, from, 0), Relaxed),
        };
        first_touch.record(tsc::now() - start);
        self.expect_zero(address, from, old);
        for (i, word) in words.iter().enumerate().take(to).skip(from) {
            let old = word.swap(self.pattern(address, i, 0), Relaxed);
            // Done above for the first word; after First::Write it holds the pattern now.
            if i != from {
                self.expect_zero(address, i, old);
            }
        }
    }

    fn read_back(&self, page: u64, pass: u64) {
        let words = self.pages.words(page);
        let address = self.pages.address(page);
        let (from, to) = self.filled(address);
        for (i, word) in words.iter().enumerate().take(to).skip(from) {
            check(address, i, self.pattern(address, i, pass), word.load(Relaxed));
        }
    }

    /// The words of the page at `address` that are used. One word alone is not always the first: a page that arrives in
    /// part, or a neighbour's, would not be noticed.
    fn filled(&self, address: u64) -> (usize, usize) {
        match self.fill {
            Fill::Page => (0, WORDS),
            Fill::Word => {
                let word = (hash(address) % WORDS as u64) as usize;
                (word, word + 1)
            }
        }
    }

    /// What pass `pass` writes to a word.
    fn pattern(&self, page: u64, word: usize, pass: u64) -> u64 {
        match self.kinds.map(|kinds| page / PAGE % kinds) {
            None => pattern(page, word, pass),
            Some(0) => 0,
            Some(kind) => pattern(kind * PAGE, word, pass),
        }
    }

    fn expect_zero(&self, address: u64, word: usize, found: u64) {
        if self.zero {
            check(address, word, 0, found);
        }
    }

    fn report_pass(&self, pass: u64, written: u64, read: u64) {
        println!("touch: pass {pass}: write {}, verify {}", self.time(written), self.time(read));
    }

    fn time(&self, cycles: u64) -> Time {
        Time {
            cycles,
            ns: self.frequency.nanoseconds(cycles),
            rate: self.frequency.per_second(self.pages.len(), cycles),
        }
    }

    /// The last line is for programs: keys are only ever added.
    fn report(&self, cycles: u64) {
        let all = &FIRST_TOUCH[0];
        FIRST_TOUCH[1..self.cpus].iter().for_each(|other| all.merge(other));
        let optional = |value: Option<u64>| value.unwrap_or(0);
        println!(
            "touch: pages={} wrong={} first_touch_p50_cycles={} p99={} max={} cycles={} ns={} pages_per_s={} cpus={}",
            self.pages.len(),
            WRONG.load(Relaxed),
            all.percentile(50),
            all.percentile(99),
            all.max(),
            cycles,
            optional(self.frequency.nanoseconds(cycles)),
            optional(self.frequency.per_second(self.pages.len(), cycles)),
            self.cpus,
        );
    }
}

impl Order {
    /// The order of `n` pages that the command line asks for.
    fn parse(line: Cmdline<'static>, n: u64) -> Result<Order, BadValue<'static>> {
        let orders = [
            ("seq", Order::Sequential),
            ("rev", Order::Reverse),
            ("random", Order::Random(Permutation::new(n, 0))),
            ("stride", Order::Stride),
        ];
        line.choice("order", &orders, Order::Sequential, "seq, rev, random or stride")
    }

    /// The page to visit at step `i` of `n`: a bijection.
    fn page(self, i: u64, n: u64) -> u64 {
        match self {
            Order::Sequential => i,
            Order::Reverse => n - 1 - i,
            Order::Random(permutation) => permutation.apply(i),
            Order::Stride => {
                // Column by column through a table COLUMN wide whose last row may be short: the first `long` columns have
                // one row more than the others.
                let (rows, long) = (n / COLUMN, n % COLUMN);
                let in_long = long * (rows + 1);
                if i < in_long {
                    i % (rows + 1) * COLUMN + i / (rows + 1)
                } else {
                    (i - in_long) % rows * COLUMN + long + (i - in_long) / rows
                }
            }
        }
    }
}

/// A time for people: in ns if the counter's frequency is known.
struct Time {
    cycles: u64,
    ns: Option<u64>,
    rate: Option<u64>,
}

impl core::fmt::Display for Time {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.ns, self.rate) {
            (Some(ns), Some(rate)) => write!(f, "{ns} ns ({rate} pages/s)"),
            _ => write!(f, "{} cycles", self.cycles),
        }
    }
}

/// Cycles from when all CPUs are here until all have done `work`.
fn timed(barrier: &Barrier, work: impl FnOnce()) -> u64 {
    barrier.wait();
    let start = tsc::now();
    work();
    barrier.wait();
    tsc::now() - start
}

/// Another value for every word of memory, so that a page in the wrong place shows.
fn pattern(page: u64, word: usize, pass: u64) -> u64 {
    hash((page + 8 * word as u64) ^ pass << 52)
}

fn check(page: u64, word: usize, expected: u64, found: u64) {
    if found == expected {
        return;
    }
    if WRONG.fetch_add(1, Relaxed) < MAX_REPORTS {
        println!(
            "touch: wrong at {:#x}: expected {expected:#018x}, found {found:#018x}",
            page + 8 * word as u64
        );
    }
}
