//! `touch dma=ADDRESS`: memory that devices write to while the host moves it about. Whatever is lost on the way shows.
//!
//! ```text
//!   control page    the words STOP (a device writes it) and PASSES (the guest does)
//!   dma=            pages under test, limit= bytes of them: slots | acknowledgements | the guest's own words
//!                   the last page of each 2 MiB block is the host's
//!   notes           a word for each slot of each page: the last number that was found in it
//! ```
//!
//! A device owns one slot of every page and writes ever larger numbers to it. The guest acknowledges what it finds, in a word
//! that it alone writes, and gives its own words another value in every pass. A page that is lost, that goes back in time or
//! to another place, or that loses a write of one side to a copy, has a word that is not what it has to be.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rt::boot_params::{Boot, Range};
use rt::cmdline::{BadValue, Expected};
use rt::permutation::hash;
use rt::println;
use rt::ram::{PAGE, Pages, WORDS};
use rt::smp::{self, Barrier};

use crate::{Order, WRONG, check};

/// Word of the control page: anything but zero asks for the last pass.
const STOP: usize = 0;
/// Word of the control page: passes done.
const PASSES: usize = 1;

/// Pages of a block, of which the last is the host's.
const BLOCK: u64 = 512;

/// Slots that a page can have: with as many acknowledgements, half of it.
const MAX_SLOTS: u64 = 128;

static LAST: AtomicU64 = AtomicU64::new(u64::MAX);
/// New numbers found in slots.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// Slots that held a smaller number than before.
static BACKWARDS: AtomicU64 = AtomicU64::new(0);

pub(crate) struct Dma {
    /// The control page, the pages under test, the notes.
    memory: Pages,
    /// Pages under test.
    pages: u64,
    slots: usize,
    order: Order,
    pub(crate) cpus: usize,
}

impl Dma {
    /// What the command line asks for, if it does.
    pub(crate) fn parse(boot: &Boot) -> Result<Option<Dma>, BadValue<'static>> {
        let line = boot.cmdline();
        let Some(start) = line.number("dma")? else { return Ok(None) };
        let pages = line.number_in("limit", PAGE, 1 << 39, BLOCK * PAGE)? / PAGE;
        let slots = line.number_in("slots", 1, MAX_SLOTS, 4)?;
        let notes = (pages * slots).div_ceil(WORDS as u64);
        let end = start.saturating_add((pages + notes) * PAGE);
        let memory = start
            .checked_sub(PAGE)
            .and_then(|control| Pages::within(boot, Range { start: control, end }));
        let Some(memory) = memory else {
            let expected = Expected::Words(
                "the address of a page, with RAM above the image from the page before it to its notes",
            );
            return Err(BadValue { key: "dma", value: line.get("dma").unwrap_or(""), expected });
        };
        let order = Order::parse(line, pages)?;
        Ok(Some(Dma { memory, pages, slots: slots as usize, order, cpus: smp::count(boot)? }))
    }

    /// What every CPU does. CPU 0 also reports.
    pub(crate) fn work(&self, cpu: usize, barrier: &Barrier) {
        let control = self.memory.words(0);
        for pass in 0.. {
            if cpu == 0 {
                control[PASSES].store(pass, Relaxed);
                // Before the barrier, and with the pass's number, so that all agree on which is the last.
                if control[STOP].load(Relaxed) != 0 {
                    LAST.store(pass, Relaxed);
                }
            }
            barrier.wait();
            self.pass(cpu, pass);
            if LAST.load(Relaxed) <= pass {
                barrier.wait();
                if cpu == 0 {
                    self.report(pass + 1);
                }
                return;
            }
        }
    }

    /// Visits an even share of the pages; another one in the next pass, so that each CPU checks what others wrote.
    fn pass(&self, cpu: usize, pass: u64) {
        let cpus = self.cpus as u64;
        let turn = (cpu as u64 + pass) % cpus;
        for i in self.pages * turn / cpus..self.pages * (turn + 1) / cpus {
            let page = self.order.page(i, self.pages);
            if self.memory.address(1 + page) / PAGE % BLOCK != BLOCK - 1 {
                self.visit(page, pass);
            }
        }
    }

    fn visit(&self, page: u64, pass: u64) {
        let (words, address) = (self.memory.words(1 + page), self.memory.address(1 + page));
        for slot in 0..self.slots {
            let (note, acknowledged) = (self.note(page, slot), self.slots + slot);
            let (last, found) = (note.load(Relaxed), words[slot].load(Relaxed));
            if found < last {
                BACKWARDS.fetch_add(1, Relaxed);
                check(address, slot, last, found);
            } else if found > last {
                SEEN.fetch_add(1, Relaxed);
            }
            check(address, acknowledged, last, words[acknowledged].load(Relaxed));
            words[acknowledged].store(found, Relaxed);
            note.store(found, Relaxed);
        }
        let [before, now] = [pass.wrapping_sub(1), pass].map(|pass| hash(address ^ pass << 40));
        for (i, word) in words.iter().enumerate().skip(2 * self.slots) {
            if pass > 0 {
                check(address, i, own(before, i), word.load(Relaxed));
            }
            word.store(own(now, i), Relaxed);
        }
    }

    /// What is known of a slot.
    fn note(&self, page: u64, slot: usize) -> &'static AtomicU64 {
        let index = page * self.slots as u64 + slot as u64;
        &self.memory.words(1 + self.pages + index / WORDS as u64)[(index % WORDS as u64) as usize]
    }

    /// The last line is for programs: keys are only ever added.
    fn report(&self, passes: u64) {
        println!(
            "touch: pages={} wrong={} passes={passes} seen={} backwards={} cpus={}",
            self.pages,
            WRONG.load(Relaxed),
            SEEN.load(Relaxed),
            BACKWARDS.load(Relaxed),
            self.cpus,
        );
    }
}

/// The value of word `i` of a page, of which `page` is different for each page and each pass.
fn own(page: u64, i: usize) -> u64 {
    page.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
