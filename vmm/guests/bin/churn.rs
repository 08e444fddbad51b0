//! `churn`: changes words of its RAM, page after page at random, and times each change: what a guest feels while its memory is moved.
//! Each word must be what the last pass has left there.
#![no_std]
#![no_main]

use core::sync::atomic::Ordering::Relaxed;

use rt::boot_params::Boot;
use rt::cmdline::BadValue;
use rt::histogram::Histogram;
use rt::permutation::{Permutation, hash};
use rt::ram::{PAGE, Pages, WORDS};
use rt::tsc::{self, Frequency};
use rt::{exit, println};

rt::main!(main);

/// What was too slow to be a hit.
static WAITS: Histogram = Histogram::new();

/// Changes between two looks at the time.
const LOOK: u64 = 1024;

fn main(boot: &Boot) -> u8 {
    run(boot).unwrap_or_else(|bad| {
        println!("churn: {bad}");
        exit::BAD_VALUE
    })
}

fn run(boot: &Boot) -> Result<u8, BadValue<'static>> {
    let line = boot.cmdline();
    let pages = Pages::above_image(boot, PAGE, line.number("limit")?.unwrap_or(u64::MAX));
    let seconds = line.number_in("seconds", 1, 1 << 20, 10)?;
    let hot = line.number_in("hot", PAGE, u64::MAX, u64::MAX)?;
    let hot = (hot / PAGE).min(pages.len());
    let wait_us = line.number_in("wait_us", 0, 1 << 20, 15)?;
    let frequency = Frequency::find(line)?;
    // Each page is filled: one of zeroes would not have to be moved.
    for page in 0..pages.len() {
        let address = pages.address(page);
        pages.words(page).iter().for_each(|word| word.store(pattern(address, 0), Relaxed));
    }
    println!("churn: filled");
    let begun = tsc::now();
    let churned = churn(&pages, hot, frequency.cycles(wait_us) / 1000, |now| {
        now.wrapping_sub(begun) >= frequency.cycles(seconds * 1000)
    });
    let wrong = churned.wrong + check(&pages, hot, churned);
    let waits = &WAITS;
    // The last line is for programs: keys are only ever added.
    println!(
        "churn: pages={} wrong={wrong} changes={} waits={} wait_p50_ns={} p90={} p99={} max={}",
        pages.len(),
        churned.changes,
        waits.count(),
        ns(frequency, waits.percentile(50)),
        ns(frequency, waits.percentile(90)),
        ns(frequency, waits.percentile(99)),
        ns(frequency, waits.max()),
    );
    Ok(if wrong == 0 { 0 } else { exit::FAILED })
}

/// How far it came.
#[derive(Clone, Copy)]
struct Churned {
    changes: u64,
    wrong: u64,
}

/// Changes a word of each of the first `hot` pages, pass after pass, until it is time to stop. Changes that take more than `wait`
/// cycles are counted.
fn churn(pages: &Pages, hot: u64, wait: u64, over: impl Fn(u64) -> bool) -> Churned {
    let mut churned = Churned { changes: 0, wrong: 0 };
    if hot == 0 {
        return churned;
    }
    for pass in 1.. {
        let order = order(hot, pass);
        for step in 0..hot {
            let page = order.apply(step);
            let address = pages.address(page);
            let word = &pages.words(page)[word(address)];
            let start = tsc::now();
            let found = word.swap(pattern(address, pass), Relaxed);
            let end = tsc::now();
            let took = end.wrapping_sub(start);
            if took > wait {
                WAITS.record(took);
            }
            churned.wrong += u64::from(found != pattern(address, pass - 1));
            churned.changes += 1;
            if churned.changes.is_multiple_of(LOOK) && over(end) {
                return churned;
            }
        }
    }
    churned
}

/// Another order in each pass.
fn order(hot: u64, pass: u64) -> Permutation {
    Permutation::new(hot, pass)
}

/// Words that are not what the passes left.
fn check(pages: &Pages, hot: u64, churned: Churned) -> u64 {
    let passes = churned.changes.checked_div(hot).unwrap_or(0);
    let rest = churned.changes - passes * hot;
    let last = order(hot, passes + 1);
    let changed = (0..hot).map(|step| (last.apply(step), passes + u64::from(step < rest)));
    let resting = (hot..pages.len()).map(|page| (page, 0));
    changed.chain(resting).map(|(page, pass)| wrong(pages, page, pass)).sum()
}

/// Words of a page that are not what is there after `pass` passes.
fn wrong(pages: &Pages, page: u64, pass: u64) -> u64 {
    let address = pages.address(page);
    let changed = word(address);
    let expected = |at| pattern(address, if at == changed { pass } else { 0 });
    let words = pages.words(page).iter().enumerate();
    words.filter(|(at, word)| word.load(Relaxed) != expected(*at)).count() as u64
}

/// The word of the page at `address` that is changed.
fn word(address: u64) -> usize {
    (hash(address) % WORDS as u64) as usize
}

/// What pass `pass` writes to the page at `address`; 0 fills it. Never zero for all words of a page.
fn pattern(address: u64, pass: u64) -> u64 {
    hash(address ^ pass << 52) | 1
}

fn ns(frequency: Frequency, cycles: u64) -> u64 {
    frequency.nanoseconds(cycles).unwrap_or(0)
}
