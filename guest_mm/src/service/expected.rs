//! What a guest over an image is expected to touch soon, because it did so the last time, is made ready before it asks.
//!
//! It goes block by block, in the order in which each block was first needed: then neighbours come together, and a block of which
//! nearly all was stored to comes whole, which is one mapping for the guest. Whoever is at a block has its lock. A violation in a block
//! that is not ready waits for that, or sees to it: a page of its own would be in the way of the rest, and the pages that
//! follow would be violations, too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::addr::{Gfn, GfnRange, PageSize};
use crate::fault;
use crate::geometry::Level;
use crate::image::{Image, Needed};
use crate::place;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, Over, RamRegion, Sharing};
use crate::sync::{Arc, Lock, Rank};

use super::Guest;

/// Pages of a block.
const BLOCK: u64 = PageSize::Size2M.frames();
/// Pages that make all of a block worth having: it takes less time to read the others than to show the block in pieces.
const NEARLY_ALL: usize = 384;

/// So many blocks before its turn the system is asked to read one: a disk takes many reads at a time.
const ASKED_AHEAD: usize = 16;

/// What is expected of a guest.
#[derive(Debug)]
pub(super) struct Expected {
    /// In the order in which they are going to be needed.
    blocks: Vec<Block>,
    /// Where each of them is in that order, by its first guest frame.
    order: HashMap<Gfn, usize>,
    /// Those before are ready, or somebody is at them.
    next: AtomicUsize,
    /// The system was asked to read those before, but for the first.
    asked: AtomicUsize,
    /// Those that are not ready.
    left: AtomicUsize,
}

#[derive(Debug)]
struct Block {
    runs: Vec<Run>,
    is_ready: Lock<bool>,
}

/// Pages that follow one another and are used alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    range: GfnRange,
    stored: bool,
}

impl<P: Protocol> Guest<P> {
    /// Expects the guest to touch `pages` of `image`, which RAM of it lies over, the first first: each is its own by then if it is
    /// going to be stored to, and shown otherwise. A violation in a block of 2 MiB of which pages are expected makes these ready at
    /// once; [`Guest::make_next_ready`] does so before. What is not there when the guest touches it, it gets as ever.
    /// Only the first call counts.
    pub fn expect(&self, image: &Arc<Image>, pages: &[Needed]) {
        let _first = self.expected.set(Expected::new(&self.space().ram, image, pages));
    }

    /// Makes ready what is expected to be touched in one block: of those that are not ready, the one that is going to be touched
    /// first. False if none is left, or its pages cannot be had, which is told when the guest touches them.
    pub fn make_next_ready(&self) -> bool {
        self.expected.get().is_some_and(|expected| expected.make_next_ready(self.space()))
    }
}

impl Expected {
    /// That a guest with `ram` needs `pages` of `image`, the first first.
    fn new(ram: &[RamRegion], image: &Arc<Image>, pages: &[Needed]) -> Expected {
        let mut order: HashMap<Gfn, usize> = HashMap::new();
        let mut blocks: Vec<Vec<(Gfn, bool)>> = Vec::new();
        for needed in pages {
            // What lies over it twice is met first in one place.
            let Some(gfn) = ram.iter().find_map(|region| place_of(region, image, needed)) else {
                continue;
            };
            let at = *order.entry(gfn.align_down(BLOCK)).or_insert(blocks.len());
            if at == blocks.len() {
                blocks.push(Vec::new());
            }
            blocks[at].push((gfn, needed.stored));
        }
        let covered = |block: GfnRange| ram.iter().any(|region| region.range.covers(block));
        let block = |pages: Vec<(Gfn, bool)>| Block {
            runs: runs(pages, covered),
            is_ready: Lock::new(Rank::Expected, false),
        };
        let blocks: Vec<Block> = blocks.into_iter().map(block).collect();
        let left = AtomicUsize::new(blocks.len());
        Expected { blocks, order, next: AtomicUsize::new(0), asked: AtomicUsize::new(0), left }
    }

    /// Makes the next block ready that is not; false if none is left, or it cannot be.
    fn make_next_ready<P: Protocol>(&self, space: &AddressSpace<P>) -> bool {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        // The first is made ready while its machine is: that needs the processors, and calls for many pages take one.
        if next > 0 {
            let most = (next + 1 + ASKED_AHEAD).min(self.blocks.len());
            let asked = self.asked.fetch_max(most, Ordering::Relaxed);
            let more = self.blocks.get(asked.max(next)..most).unwrap_or_default();
            more.iter().for_each(|block| block.will_need(space));
        }
        next < self.blocks.len() && self.make_ready(space, next)
    }

    /// The guest touches a page of the block around `gfn`, which is ready when this returns, if it is expected to be needed.
    pub(super) fn touched<P: Protocol>(&self, space: &AddressSpace<P>, gfn: Gfn) {
        // A look at the count is a hint: the block's own lock decides.
        if self.left.load(Ordering::Relaxed) > 0
            && let Some(&at) = self.order.get(&gfn.align_down(BLOCK))
        {
            // What cannot be had is told by the violation.
            self.make_ready(space, at);
        }
    }

    fn make_ready<P: Protocol>(&self, space: &AddressSpace<P>, at: usize) -> bool {
        let block = &self.blocks[at];
        let mut is_ready = block.is_ready.lock();
        if *is_ready {
            return true;
        }
        // Also if it fails: nobody tries it twice.
        *is_ready = true;
        self.left.fetch_sub(1, Ordering::Relaxed);
        if at > 0 && at >= self.asked.load(Ordering::Relaxed) {
            block.will_need(space);
        }
        block.runs.iter().all(|run| run.make_ready(space).is_some())
    }
}

impl Block {
    /// Has the system begin to read all of it.
    fn will_need<P: Protocol>(&self, space: &AddressSpace<P>) {
        for run in &self.runs {
            if let Some((over, page)) = run.place(space) {
                over.image.will_need(page, run.range.frames());
            }
        }
    }
}

/// Where `region` has a page of `image`, if it lies over it and can have pages of its own.
fn place_of(region: &RamRegion, image: &Arc<Image>, needed: &Needed) -> Option<Gfn> {
    let own = |over: &&Over| Arc::ptr_eq(&over.image, image) && over.sharing == Sharing::Private;
    let over = region.over.as_ref().filter(own)?;
    let offset = u64::from(needed.page).checked_sub(over.first)?;
    (offset < region.range.frames()).then(|| region.range.start().add(offset))
}

/// The runs of pages of one block, each of them once; nearly all of them stored to become all, where that is RAM.
fn runs(mut pages: Vec<(Gfn, bool)>, covered: impl Fn(GfnRange) -> bool) -> Vec<Run> {
    pages.sort_unstable();
    // What is read and what is stored to is stored to.
    pages.reverse();
    pages.dedup_by_key(|(gfn, _)| *gfn);
    pages.reverse();
    let block = GfnRange::entry(pages[0].0, Level::PD);
    let stored = pages.iter().filter(|(_, stored)| *stored).count();
    if stored >= NEARLY_ALL && covered(block) {
        return vec![Run { range: block, stored: true }];
    }
    let follows = |one: &(Gfn, bool), next: &(Gfn, bool)| one.0.add(1) == next.0 && one.1 == next.1;
    let run = |run: &[(Gfn, bool)]| {
        let range = GfnRange::new(run[0].0, run.len() as u64).ok()?;
        Some(Run { range, stored: run[0].1 })
    };
    pages.chunk_by(follows).filter_map(run).collect()
}

impl Run {
    /// The image that it lies over, and where in it.
    fn place<P: Protocol>(self, space: &AddressSpace<P>) -> Option<(&Over, u64)> {
        let region = space.region(self.range.start())?;
        let over = region.over.as_ref()?;
        Some((over, over.page(region, self.range.start())))
    }

    fn make_ready<P: Protocol>(self, space: &AddressSpace<P>) -> Option<()> {
        if self.stored && self.range.frames() == BLOCK {
            return place::own_block_ahead(space, self.range).ok();
        }
        if self.stored {
            return place::own_ahead(space, self.range).ok();
        }
        let (over, first) = self.place(space)?;
        let pages: Vec<u32> =
            (first..).map(|page| page as u32).take(self.range.frames() as usize).collect();
        over.image.prefetch(&pages).ok()?;
        fault::populate(space, self.range).ok().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(pages: impl IntoIterator<Item = (u64, bool)>) -> Vec<(Gfn, bool)> {
        pages.into_iter().map(|(page, stored)| (Gfn::new(page), stored)).collect()
    }

    fn run(first: u64, pages: u64, stored: bool) -> Run {
        Run { range: GfnRange::new(Gfn::new(first), pages).unwrap(), stored }
    }

    #[test]
    fn pages_of_a_block_come_in_order_and_together_with_those_that_are_used_alike() {
        let needed = [
            (7, true),
            (3, false),
            (4, false),
            (6, true),
            (5, true),
            (4, false),
            (9, true),
            (3, true),
        ];
        let expected = [run(3, 1, true), run(4, 1, false), run(5, 3, true), run(9, 1, true)];
        assert_eq!(runs(pages(needed), |_| true), expected);
    }

    #[test]
    fn a_block_of_which_nearly_all_was_stored_to_comes_whole() {
        let most = NEARLY_ALL as u64;
        let stored = |pages: u64| (0..pages).map(|page| (BLOCK + page, true));
        let with_a_read = pages(stored(most).chain([(2 * BLOCK - 1, false)]));
        assert_eq!(runs(with_a_read.clone(), |_| true), [run(BLOCK, BLOCK, true)]);
        assert_eq!(runs(pages(stored(most - 1)), |_| true), [run(BLOCK, most - 1, true)]);
        // Of the last block of RAM there may be but a part.
        let parts = [run(BLOCK, most, true), run(2 * BLOCK - 1, 1, false)];
        assert_eq!(runs(with_a_read, |_| false), parts);
    }
}
