//! What a source still has to send, and in which order: what was asked for lies first, then block after block.

use std::collections::{BTreeMap, VecDeque};

use crate::addr::{Gfn, GfnRange, PageSize};

/// Pages of a block.
const BLOCK: u64 = PageSize::Size2M.frames();
/// Words of a block's bits.
const WORDS: usize = BLOCK as usize / 64;

/// Most hints that are kept: older ones are about what the guest has left behind.
const HINTS: usize = 64;

/// Pages that are to be sent, by block.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Plan {
    blocks: BTreeMap<u64, [u64; WORDS]>,
    /// Blocks that the guest was seen at, the latest last.
    hints: VecDeque<u64>,
    left: u64,
}

impl Plan {
    /// The pages of `runs`, which may overlap.
    pub(crate) fn of(runs: impl IntoIterator<Item = GfnRange>) -> Plan {
        let mut plan = Plan::default();
        runs.into_iter().for_each(|run| plan.add(run));
        plan
    }

    /// These pages too.
    pub(crate) fn add(&mut self, run: GfnRange) {
        for part in run.chunks(BLOCK) {
            let bits = self.blocks.entry(part.start().as_u64() / BLOCK).or_default();
            for (word, mask) in words(part) {
                self.left += u64::from((mask & !bits[word]).count_ones());
                bits[word] |= mask;
            }
        }
    }

    /// These not.
    pub(crate) fn remove(&mut self, run: GfnRange) {
        for part in run.chunks(BLOCK) {
            let block = part.start().as_u64() / BLOCK;
            let Some(bits) = self.blocks.get_mut(&block) else { continue };
            for (word, mask) in words(part) {
                self.left -= u64::from((mask & bits[word]).count_ones());
                bits[word] &= !mask;
            }
            if bits.iter().all(|&word| word == 0) {
                self.blocks.remove(&block);
            }
        }
    }

    /// How many pages are left.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The guest was seen at `gfn`: its block is wanted soon.
    pub(crate) fn hint(&mut self, gfn: Gfn) {
        let block = gfn.as_u64() / BLOCK;
        if !self.blocks.contains_key(&block) || self.hints.back() == Some(&block) {
            return;
        }
        if self.hints.len() == HINTS {
            self.hints.pop_front();
        }
        self.hints.push_back(block);
    }

    /// Takes the next pages for stream `stream` of `streams`: at most `most`, in one block, without a gap. A block's pages always
    /// go over the same stream, so that what was sent later arrives later.
    pub(crate) fn take(&mut self, stream: usize, streams: usize, most: u64) -> Option<GfnRange> {
        let mine = |block: u64| block as usize % streams == stream;
        let hinted =
            self.hints.iter().rposition(|&block| mine(block) && self.blocks.contains_key(&block));
        let block = match hinted {
            Some(at) => self.hints[at],
            None => self.blocks.keys().copied().find(|&block| mine(block))?,
        };
        let bits = self.blocks.get(&block)?;
        let run = first_run(bits, most)?;
        let start = Gfn::new(block * BLOCK + run.start);
        let run = GfnRange::new(start, run.end - run.start).expect("it was taken from a range");
        self.remove(run);
        if !self.blocks.contains_key(&block) {
            self.hints.retain(|&hint| hint != block);
        }
        Some(run)
    }

    /// Its pages as runs, in order.
    pub(crate) fn runs(&self) -> Vec<GfnRange> {
        let mut runs: Vec<GfnRange> = Vec::new();
        for (&block, bits) in &self.blocks {
            let mut rest = *bits;
            while let Some(run) = first_run(&rest, BLOCK) {
                let start = Gfn::new(block * BLOCK + run.start);
                let run = GfnRange::new(start, run.end - run.start).expect("as in `take`");
                words(run).for_each(|(word, mask)| rest[word] &= !mask);
                match runs.last_mut().and_then(|last| Some((last.joined(run)?, last))) {
                    Some((joined, last)) => *last = joined,
                    None => runs.push(run),
                }
            }
        }
        runs
    }
}

/// The first of `runs` that is not all in `ram`, whose ranges are apart.
pub(crate) fn outside(ram: &[GfnRange], runs: &[GfnRange]) -> Option<GfnRange> {
    let inside = |run: GfnRange| -> u64 {
        ram.iter().filter_map(|range| range.intersection(run)).map(GfnRange::frames).sum()
    };
    runs.iter().copied().find(|&run| inside(run) != run.frames())
}

/// The words of a block's bits that `part`, in one block, touches, and which of their bits.
fn words(part: GfnRange) -> impl Iterator<Item = (usize, u64)> {
    let first = part.start().as_u64() % BLOCK;
    let end = first + part.frames();
    (first / 64..end.div_ceil(64)).map(move |word| {
        let (from, to) = (first.max(word * 64) % 64, end.min(word * 64 + 64) - word * 64);
        (word as usize, (!0 << from) & (!0 >> (64 - to)))
    })
}

/// The first set bits of `bits` that follow each other, at most `most`.
fn first_run(bits: &[u64; WORDS], most: u64) -> Option<std::ops::Range<u64>> {
    let word = bits.iter().position(|&word| word != 0)?;
    let start = word as u64 * 64 + u64::from(bits[word].trailing_zeros());
    let (mut end, limit) = (start, BLOCK.min(start.saturating_add(most)));
    // Word by word: a machine that stands still waits for it.
    while end < limit {
        let set = (bits[end as usize / 64] >> (end % 64)).trailing_ones();
        end += u64::from(set);
        if set == 0 || !end.is_multiple_of(64) {
            break;
        }
    }
    Some(start..end.min(limit))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run(start: u64, frames: u64) -> GfnRange {
        GfnRange::new(Gfn::new(start), frames).unwrap()
    }

    #[test]
    fn what_is_not_ram_is_found() {
        let ram = [run(0, 100), run(100, 50), run(200, 10)];
        assert_eq!(outside(&ram, &[run(0, 1), run(90, 60), run(200, 10)]), None);
        for wrong in [run(150, 1), run(149, 2), run(199, 2), run(209, 2), run(90, 120)] {
            assert_eq!(outside(&ram, &[run(0, 5), wrong]), Some(wrong));
        }
    }

    #[test]
    fn blocks_go_in_order_and_in_pieces() {
        let mut plan = Plan::of([run(500, 30), run(1024, 512)]);
        assert_eq!(plan.left(), 542);
        let taken: Vec<_> = std::iter::from_fn(|| plan.take(0, 1, 256)).collect();
        assert_eq!(taken, [run(500, 12), run(512, 18), run(1024, 256), run(1280, 256)]);
        assert_eq!((plan.left(), plan), (0, Plan::default()));
    }

    #[test]
    fn what_the_guest_is_at_goes_first() {
        let mut plan = Plan::of([run(0, 2048)]);
        plan.hint(Gfn::new(1030));
        plan.hint(Gfn::new(1600));
        plan.hint(Gfn::new(9000));
        let order: Vec<_> = std::iter::from_fn(|| plan.take(0, 1, 512)).collect();
        assert_eq!(order, [run(1536, 512), run(1024, 512), run(0, 512), run(512, 512)]);
    }

    #[test]
    fn a_block_stays_on_its_stream() {
        let mut plan = Plan::of([run(0, 2048)]);
        assert_eq!(plan.take(1, 2, 512), Some(run(512, 512)));
        assert_eq!(plan.take(1, 2, 512), Some(run(1536, 512)));
        assert_eq!(plan.take(1, 2, 512), None);
        assert_eq!(plan.left(), 1024);
    }

    proptest! {
        #[test]
        fn it_is_the_set_that_it_says(
            steps in prop::collection::vec((any::<bool>(), 0..3000_u64, 1..900_u64), 1..20),
            most in 1..600_u64,
        ) {
            let (mut plan, mut oracle) = (Plan::default(), BTreeSet::new());
            for (add, start, frames) in steps {
                let run = run(start, frames);
                let pages = run.iter().map(Gfn::as_u64);
                if add {
                    plan.add(run);
                    oracle.extend(pages);
                } else {
                    plan.remove(run);
                    pages.for_each(|page| {
                        oracle.remove(&page);
                    });
                }
            }
            prop_assert_eq!(plan.left(), oracle.len() as u64);
            let runs = plan.runs();
            let listed: BTreeSet<u64> =
                runs.iter().flat_map(|run| run.iter()).map(Gfn::as_u64).collect();
            prop_assert_eq!(&listed, &oracle);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].start()));
            let mut taken = Vec::new();
            while let Some(run) = plan.take(0, 1, most) {
                prop_assert!(run.frames() <= most);
                taken.extend(run.iter().map(Gfn::as_u64));
            }
            prop_assert_eq!(taken, oracle.into_iter().collect::<Vec<_>>());
        }
    }
}
