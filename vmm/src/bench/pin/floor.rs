//! The least that a pin can be: what no pin of a page behind such tables can leave out, and no more.
//!
//! A guard against reuse of the tables, a load a level, an increment of the frame's word, a second look at
//! the entry and at its parent; to unpin, a decrement. No addresses are checked, nothing is told apart, and
//! nothing is kept for who pins.

use std::sync::atomic::{AtomicU64, Ordering};

use super::pages::PAGES;

const FANOUT: u64 = 512;
const LEVELS: u32 = 4;
/// An entry: an index, and a bit that says that it is one.
const PRESENT: u64 = 1;
const SHIFT: u32 = 12;
/// Where a frame's word counts its pins.
const ONE_PIN: u64 = 1 << 24;

/// Tables over [`PAGES`] frames, and the frames' words.
#[derive(Debug)]
pub(super) struct Floor {
    /// Tables of 512 words, the root first.
    tables: Box<[AtomicU64]>,
    frames: Box<[AtomicU64]>,
}

/// What a page's pin holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held(u64);

impl Floor {
    /// Page `i` is frame `i`.
    pub(super) fn new() -> Floor {
        let page_tables = PAGES / FANOUT;
        // A root, one table below it, one below that: 65,536 pages are 128 page tables.
        assert!(page_tables <= FANOUT);
        let mut tables: Vec<u64> = vec![0; ((3 + page_tables) * FANOUT) as usize];
        let entry = |index: u64| (index << SHIFT) | PRESENT;
        tables[0] = entry(1);
        tables[FANOUT as usize] = entry(2);
        for table in 0..page_tables {
            tables[(2 * FANOUT + table) as usize] = entry(3 + table);
        }
        for page in 0..PAGES {
            tables[(3 * FANOUT + page) as usize] = entry(page);
        }
        let words = |words: Vec<u64>| words.into_iter().map(AtomicU64::new).collect();
        Floor { tables: words(tables), frames: words(vec![1; PAGES as usize]) }
    }

    /// Pins a page and unpins it.
    #[inline(never)]
    pub(super) fn pin_unpin(&self, page: u64) {
        let held = {
            let _guard = crossbeam_epoch::pin();
            self.pin(page)
        };
        self.unpin(std::hint::black_box(held));
    }

    /// Pins pages under one guard, and unpins them.
    #[inline(never)]
    pub(super) fn pin_unpin_batch(&self, pages: &[u64], held: &mut Vec<Held>) {
        held.clear();
        {
            let _guard = crossbeam_epoch::pin();
            held.extend(pages.iter().map(|&page| self.pin(page)));
        }
        for &held in std::hint::black_box(&*held) {
            self.unpin(held);
        }
    }

    #[inline(always)]
    fn pin(&self, page: u64) -> Held {
        let mut table = 0;
        let (mut parent, mut word) = (&self.tables[0], &self.tables[0]);
        let (mut parent_entry, mut entry) = (0, 0);
        for level in (0..LEVELS).rev() {
            (parent, parent_entry) = (word, entry);
            word = &self.tables[(table * FANOUT + (page >> (9 * level)) % FANOUT) as usize];
            entry = word.load(Ordering::Acquire);
            table = entry >> SHIFT;
        }
        let frame = &self.frames[table as usize];
        frame.fetch_add(ONE_PIN, Ordering::AcqRel);
        let unchanged =
            word.load(Ordering::Acquire) == entry && parent.load(Ordering::Acquire) == parent_entry;
        assert!(unchanged, "nobody changes these tables");
        Held(table)
    }

    #[inline(always)]
    fn unpin(&self, held: Held) {
        self.frames[held.0 as usize].fetch_sub(ONE_PIN, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_on_the_frame_of_its_page() {
        let floor = Floor::new();
        for page in [0, 1, 511, 512, PAGES - 1] {
            let held = floor.pin(page);
            assert_eq!(floor.frames[page as usize].load(Ordering::Relaxed), ONE_PIN + 1);
            floor.unpin(held);
        }
        assert!(floor.frames.iter().all(|word| word.load(Ordering::Relaxed) == 1));
    }
}
