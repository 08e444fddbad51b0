//! `smp`: all CPUs touch the same pages at the same time. A page that one CPU's fault gave and another's took away has lost
//! an increment, and shows.
#![no_std]
#![no_main]

use core::sync::atomic::Ordering::Relaxed;

use rt::boot_params::Boot;
use rt::cmdline::BadValue;
use rt::permutation::{Permutation, hash};
use rt::ram::{PAGE, Pages};
use rt::smp::{self, Barrier};
use rt::{exit, mp_table, println, tsc};

rt::main!(main);

/// Lines about wrong words; the rest is only counted.
const MAX_REPORTS: u64 = 20;
/// Pages between two barriers, so that the CPUs stay close: a 2 MiB block.
const BLOCK: u64 = 512;
/// The word of a page that all CPUs add to.
const COUNTER: usize = 0;
/// The words that are each CPU's own start here: in another cache line.
const OWN: usize = 8;

#[derive(Clone, Copy)]
enum Order {
    Mixed,
    Same,
    Own,
}

struct Plan {
    cpus: usize,
    pages: Pages,
    passes: u64,
    order: Order,
}

fn main(boot: &Boot) -> u8 {
    run(boot).unwrap_or_else(|bad| {
        println!("smp: {bad}");
        exit::BAD_VALUE
    })
}

fn run(boot: &Boot) -> Result<u8, BadValue<'static>> {
    let line = boot.cmdline();
    let cpus = smp::count(boot)?;
    match mp_table::find() {
        Some(table) => {
            println!("smp: {cpus} cpus by the command line, {} by the MP table", table.count);
        }
        None => println!("smp: {cpus} cpus by the command line, no MP table"),
    }
    let plan = Plan {
        cpus,
        pages: Pages::above_image(boot, PAGE, line.number("limit")?.unwrap_or(u64::MAX)),
        passes: line.number_in("passes", 1, u64::MAX, 2)?,
        order: line.choice(
            "order",
            &[("mixed", Order::Mixed), ("same", Order::Same), ("own", Order::Own)],
            Order::Mixed,
            "mixed, same or own",
        )?,
    };
    let barrier = Barrier::new(cpus);
    let start = tsc::now();
    if let Err(error) = smp::run(boot, cpus, &|cpu| plan.work(cpu as u64, &barrier)) {
        println!("smp: {error}");
        return Ok(exit::FAILED);
    }
    let cycles = tsc::now() - start;
    let wrong = plan.check();
    println!(
        "smp: cpus={cpus} pages={} passes={} wrong={wrong} cycles={cycles}",
        plan.pages.len(),
        plan.passes
    );
    Ok(if wrong == 0 { 0 } else { exit::FAILED })
}

impl Plan {
    fn work(&self, cpu: u64, barrier: &Barrier) {
        let pages = self.pages.len();
        for pass in 0..self.passes {
            for first in (0..pages).step_by(BLOCK as usize) {
                let len = BLOCK.min(pages - first);
                let order = Permutation::new(len, self.seed(cpu, pass, first / BLOCK));
                barrier.wait();
                for i in 0..len {
                    let page = first + order.apply(i);
                    let words = self.pages.words(page);
                    words[COUNTER].fetch_add(1, Relaxed);
                    words[OWN + cpu as usize]
                        .store(own(self.pages.address(page), cpu, pass), Relaxed);
                }
            }
        }
    }

    /// In the same order the CPUs race for each page; in orders of their own, for pages of the same block.
    fn seed(&self, cpu: u64, pass: u64, block: u64) -> u64 {
        let shared = pass << 32 | block << 1;
        let own = match self.order {
            Order::Same => false,
            Order::Own => true,
            Order::Mixed => block % 2 == 1,
        };
        if own { hash(shared | 1) ^ cpu } else { shared }
    }

    fn check(&self) -> u64 {
        let mut wrong = 0;
        for page in 0..self.pages.len() {
            let (words, address) = (self.pages.words(page), self.pages.address(page));
            let mut expect = |word: usize, expected: u64| {
                let found = words[word].load(Relaxed);
                if found == expected {
                    return;
                }
                wrong += 1;
                if wrong <= MAX_REPORTS {
                    println!(
                        "smp: wrong at {:#x}: expected {expected:#x}, found {found:#x}",
                        address + 8 * word as u64
                    );
                }
            };
            expect(COUNTER, self.cpus as u64 * self.passes);
            for cpu in 0..self.cpus as u64 {
                expect(OWN + cpu as usize, own(address, cpu, self.passes - 1));
            }
        }
        wrong
    }
}

/// What `cpu` writes to its own word of the page at `address`.
fn own(address: u64, cpu: u64, pass: u64) -> u64 {
    hash(address ^ cpu ^ pass << 52)
}
