//! `clone`: reads all RAM above its image, which a template has filled, writes to pages of it, and reads everything again.
//! What another clone wrote, or a store that went to the template, shows.
#![no_std]
#![no_main]

use core::sync::atomic::Ordering::Relaxed;

use rt::boot_params::Boot;
use rt::cmdline::BadValue;
use rt::permutation::{Permutation, hash};
use rt::ram::{PAGE, Pages, WORDS};
use rt::{exit, println, tsc};

rt::main!(main);

#[derive(Clone, Copy)]
enum Order {
    Sequential,
    Random(Permutation),
}

fn main(boot: &Boot) -> u8 {
    // The time to this byte is what a clone costs.
    println!("clone: here");
    run(boot).unwrap_or_else(|bad| {
        println!("clone: {bad}");
        exit::BAD_VALUE
    })
}

fn run(boot: &Boot) -> Result<u8, BadValue<'static>> {
    let line = boot.cmdline();
    let pages = Pages::above_image(boot, PAGE, line.number("limit")?.unwrap_or(u64::MAX));
    let written = line.number_in("write", 0, pages.len(), 0)?;
    let orders =
        [("seq", Order::Sequential), ("random", Order::Random(Permutation::new(pages.len(), 0)))];
    let order = line.choice("order", &orders, Order::Sequential, "seq or random")?;
    let start = tsc::now();
    let sum = sum(&pages);
    let read = tsc::now();
    // Every clone writes something else.
    let salt = hash(start);
    let changed = (0..written).fold(0, |changed: u64, i| {
        let page = match order {
            Order::Sequential => i,
            Order::Random(order) => order.apply(i),
        };
        changed.wrapping_add(write(&pages, page, salt))
    });
    let end = tsc::now();
    let wrong = u64::from(self::sum(&pages) != sum.wrapping_add(changed));
    // The last line is for programs: keys are only ever added.
    println!(
        "clone: pages={} from={} sum={sum} written={written} wrong={wrong} read_cycles={} write_cycles={}",
        pages.len(),
        if pages.is_empty() { 0 } else { pages.address(0) },
        read - start,
        end - read,
    );
    Ok(if wrong == 0 { 0 } else { exit::FAILED })
}

/// The sum of all words, each times a number that is its place's own.
fn sum(pages: &Pages) -> u64 {
    (0..pages.len()).fold(0, |sum, page| {
        let words = pages.words(page).iter().enumerate();
        let inner = words.fold(0u64, |sum, (i, word)| {
            sum.wrapping_add(word.load(Relaxed).wrapping_mul(weight(i)))
        });
        sum.wrapping_add(inner.wrapping_mul(hash(pages.address(page))))
    })
}

/// Writes to a word of a page; what that adds to the sum.
fn write(pages: &Pages, page: u64, salt: u64) -> u64 {
    let address = pages.address(page);
    let word = (hash(address) % WORDS as u64) as usize;
    let new = hash(address ^ salt);
    let old = pages.words(page)[word].swap(new, Relaxed);
    new.wrapping_sub(old).wrapping_mul(weight(word)).wrapping_mul(hash(address))
}

fn weight(word: usize) -> u64 {
    2 * word as u64 + 1
}
