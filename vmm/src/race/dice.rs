//! Random numbers that a seed repeats.

use std::ops::Range;

/// SplitMix64: one multiplication more than a counter, and good enough to choose pages with.
#[derive(Clone, Debug)]
pub(in crate::race) struct Dice(u64);

impl Dice {
    /// The numbers of one thread; another `stream`, other numbers.
    pub(in crate::race) fn new(seed: u64, stream: u64) -> Dice {
        let mut dice = Dice(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// One of `range`, which is not empty.
    pub(in crate::race) fn pick(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True once in `n` times.
    pub(in crate::race) fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}
