//! `pmem`: reads a region of persistent memory, writes to it if it is asked to, reads it again, and has the device flush it.
#![no_std]
#![no_main]

mod device;

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use rt::boot_params::{Boot, Range};
use rt::cmdline::BadValue;
use rt::permutation::hash;
use rt::ram::{PAGE, WORDS};
use rt::{exit, paging, println, tsc};

use device::Pmem;

rt::main!(main);

/// The type of a request that makes stores last, and of one that there is not.
const FLUSH: u32 = 0;
const UNKNOWN: u32 = 7;

fn main(boot: &Boot) -> u8 {
    run(boot).unwrap_or_else(|bad| {
        println!("pmem: {bad}");
        exit::BAD_VALUE
    })
}

fn run(boot: &Boot) -> Result<u8, BadValue<'static>> {
    let line = boot.cmdline();
    let index = line.number_in("pmem.index", 0, 15, 0)? as usize;
    let Some(mut device) = Pmem::find(line, index) else {
        println!("pmem: there is no persistent memory number {index}");
        return Ok(exit::FAILED);
    };
    let region = device.region();
    if boot.ram().any(|ram| ram.overlaps(region)) || !region.start.is_multiple_of(2 << 20) {
        println!("pmem: {:#x}..{:#x} is RAM, or not aligned", region.start, region.end);
        return Ok(exit::FAILED);
    }
    paging::reach(region);
    let written = line.number_in("pmem.write", 0, region.len() / PAGE, 0)?;

    let salt = hash(tsc::now());
    let before = sum(region);
    let changed =
        (0..written).fold(0u64, |changed, page| changed.wrapping_add(write(region, page, salt)));
    let same = sum(region) == before.wrapping_add(changed);
    let agreed = device.start();
    let flush = if agreed { device.ask(FLUSH) } else { u32::MAX };
    let unknown = if agreed { device.ask(UNKNOWN) } else { 0 };
    let checks = [
        (same, "the memory is not what it was, and what was written to it"),
        (agreed, "the device does not agree"),
        (flush == 0, "the flush failed"),
        (unknown != 0, "a request that there is not succeeded"),
    ];
    let wrong = checks.iter().filter(|(holds, _)| !holds);
    wrong.clone().for_each(|(_, what)| println!("pmem: {what}"));
    let wrong = wrong.count();
    // The last line is for programs: keys are only ever added.
    println!(
        "pmem: start={:#x} bytes={} sum={before} written={written} flush={flush} wrong={wrong}",
        region.start,
        region.len(),
    );
    Ok(if wrong == 0 { 0 } else { exit::FAILED })
}

/// The words of page `page`.
fn words(region: Range, page: u64) -> &'static [AtomicU64; WORDS] {
    let at = (region.start + page * PAGE) as *const [AtomicU64; WORDS];
    // SAFETY: memory that the device names, mapped for good by `reach` in `run`, aligned, no RAM and so none of this program's;
    // only the words of this slice are ever made of it.
    unsafe { &*at }
}

/// The sum of all words, word i of the region times 2i + 1.
fn sum(region: Range) -> u64 {
    (0..region.len() / PAGE).fold(0, |sum, page| {
        words(region, page).iter().enumerate().fold(sum, |sum: u64, (i, word)| {
            sum.wrapping_add(word.load(Relaxed).wrapping_mul(weight(page, i)))
        })
    })
}

/// Writes to a word of a page; what that adds to the sum.
fn write(region: Range, page: u64, salt: u64) -> u64 {
    let word = (hash(page) % WORDS as u64) as usize;
    let new = hash(page ^ salt);
    let old = words(region, page)[word].swap(new, Relaxed);
    new.wrapping_sub(old).wrapping_mul(weight(page, word))
}

fn weight(page: u64, word: usize) -> u64 {
    2 * (page * WORDS as u64 + word as u64) + 1
}
