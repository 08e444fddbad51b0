//! Which runs of frames are free: a buddy allocator from one frame to 1 GiB.
//!
//! A free run of order `o` is 2^o frames, aligned to its length, and is listed at no other order: two
//! free buddies are always one run of the next order. The lists are bit sets beside the memory, so an
//! allocation never touches a free page, and 64 GiB of pool cost 4 MiB of them.

use crate::addr::{FrameNo, PageSize};

use super::bits::BitTree;

/// log2 of the frames in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Order(u8);

impl Order {
    /// One frame.
    pub(crate) const FRAME: Order = Order(0);
    /// One block, 2 MiB.
    pub(crate) const BLOCK: Order = Order::of(PageSize::Size2M);
    /// The largest run, 1 GiB.
    const MAX: Order = Order::of(PageSize::Size1G);

    /// The order of a run of one leaf of `size`.
    pub(crate) const fn of(size: PageSize) -> Order {
        Order(size.frames().trailing_zeros() as u8)
    }

    const fn frames(self) -> u64 {
        1 << self.0
    }
}

/// The allocator.
#[derive(Debug)]
pub(crate) struct Buddy {
    /// Free runs by order; a run is named by its index in units of its own length.
    free: Vec<BitTree>,
    frames: u64,
    nr_free: u64,
}

impl Buddy {
    /// All of `frames` free.
    pub(crate) fn new(frames: u64) -> Buddy {
        let free =
            (0..=Order::MAX.0).map(|order| BitTree::new((frames >> order) as usize)).collect();
        let mut buddy = Buddy { free, frames, nr_free: frames };
        let mut next = 0;
        while next < frames {
            let aligned = if next == 0 { Order::MAX.0 as u32 } else { next.trailing_zeros() };
            let fits = (frames - next).ilog2();
            let order = aligned.min(fits).min(Order::MAX.0 as u32);
            buddy.free[order as usize].insert((next >> order) as usize);
            next += 1 << order;
        }
        buddy
    }

    /// Frames that are free.
    pub(crate) fn nr_free(&self) -> u64 {
        self.nr_free
    }

    /// A free run of `order`, the lowest in the smallest run that is large enough.
    pub(crate) fn alloc(&mut self, order: Order) -> Option<FrameNo> {
        let found = (order.0..=Order::MAX.0)
            .find_map(|o| self.free[o as usize].first().map(|run| (Order(o), run)))?;
        let (from, run) = found;
        self.free[from.0 as usize].remove(run);
        let first = (run as u64) << from.0;
        self.give_back_halves(from, order, first, first);
        self.nr_free -= order.frames();
        Some(FrameNo::new(first as u32))
    }

    /// The run of `order` that starts at `at`, if all of it is free.
    pub(crate) fn alloc_at(&mut self, at: FrameNo, order: Order) -> Option<FrameNo> {
        let at = at.index() as u64;
        if at + order.frames() > self.frames || !at.is_multiple_of(order.frames()) {
            return None;
        }
        let from = (order.0..=Order::MAX.0)
            .find(|&o| self.free[o as usize].remove((at >> o) as usize))
            .map(Order)?;
        self.give_back_halves(from, order, (at >> from.0) << from.0, at);
        self.nr_free -= order.frames();
        Some(FrameNo::new(at as u32))
    }

    /// The run of order `from` at `first` is ours; keeps the run of `order` at `keep` and frees the
    /// half beside it at every order between.
    fn give_back_halves(&mut self, from: Order, order: Order, first: u64, keep: u64) {
        let mut first = first;
        for o in (order.0..from.0).rev() {
            let upper = first + (1 << o);
            let (mine, other) = if keep >= upper { (upper, first) } else { (first, upper) };
            self.free[o as usize].insert((other >> o) as usize);
            first = mine;
        }
    }

    /// Gives back the run of `order` that starts at `at`, and joins it with its free buddies.
    ///
    /// # Panics
    /// If any of it is free already.
    pub(crate) fn free(&mut self, at: FrameNo, order: Order) {
        let mut run = (at.index() >> order.0) as u64;
        // Whoever frees a frame in use has changed its owner first, and would have noticed there.
        debug_assert!(
            (order.0..=Order::MAX.0).all(|o| !self.free[o as usize].contains(at.index() >> o)),
            "frame {at} was freed twice"
        );
        let mut o = order.0;
        while o < Order::MAX.0 && self.free[o as usize].remove((run ^ 1) as usize) {
            run >>= 1;
            o += 1;
        }
        self.free[o as usize].insert(run as usize);
        self.nr_free += order.frames();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn everything_freed_is_one_run_again() {
        let mut buddy = Buddy::new(1 << 18);
        let frames: Vec<_> = std::iter::from_fn(|| buddy.alloc(Order::FRAME)).collect();
        assert_eq!(frames.len(), 1 << 18);
        assert_eq!(buddy.nr_free(), 0);
        for frame in frames.iter().rev() {
            buddy.free(*frame, Order::FRAME);
        }
        assert_eq!(buddy.alloc(Order::MAX), Some(FrameNo::new(0)));
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_second_free_is_caught() {
        let mut buddy = Buddy::new(1024);
        let frame = buddy.alloc(Order::FRAME).unwrap();
        buddy.free(frame, Order::FRAME);
        buddy.free(frame, Order::FRAME);
    }

    proptest! {
        /// Against a map of what is taken: no run is given out twice, none is lost, and what was asked
        /// for by address is given whenever all of it is free.
        #[test]
        fn runs_never_overlap_and_never_leak(
            frames in 1..3000u64,
            ops in prop::collection::vec((0..4u8, 0..10u8, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut buddy = Buddy::new(frames);
            let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
            for (op, order, pick) in ops {
                let order = Order(order);
                let overlaps = |taken: &BTreeMap<u64, u64>, at: u64, len: u64| {
                    taken.range(..at + len).next_back().is_some_and(|(s, l)| s + l > at)
                };
                match op {
                    0 | 1 => {
                        let got = if op == 0 {
                            buddy.alloc(order)
                        } else {
                            let at = (pick.index(frames as usize) as u64) >> order.0 << order.0;
                            let got = buddy.alloc_at(FrameNo::new(at as u32), order);
                            let fits = at + order.frames() <= frames;
                            let free = fits && !overlaps(&taken, at, order.frames());
                            prop_assert_eq!(got.is_some(), free);
                            got
                        };
                        if let Some(at) = got {
                            let at = at.index() as u64;
                            prop_assert!(at + order.frames() <= frames);
                            prop_assert!(!overlaps(&taken, at, order.frames()));
                            taken.insert(at, order.frames());
                        }
                    }
                    _ if !taken.is_empty() => {
                        let at = *taken.keys().nth(pick.index(taken.len())).unwrap();
                        let len = taken.remove(&at).unwrap();
                        buddy.free(FrameNo::new(at as u32), Order(len.trailing_zeros() as u8));
                    }
                    _ => {}
                }
                prop_assert_eq!(buddy.nr_free(), frames - taken.values().sum::<u64>());
            }
        }
    }
}
