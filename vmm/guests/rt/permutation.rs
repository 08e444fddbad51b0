//! A pseudo-random order of `0..n` that needs no table.
//!
//! An invertible mix of k-bit words (odd multiplications and right-shift-xors, each a bijection mod 2^k), with 2^k the power
//! of two at or above n; results outside `0..n` are mixed again until they fall inside ("cycle walking": a bijection on the
//! larger set restricted to the smaller one stays a bijection). Fewer than two rounds are expected, since 2^k < 2n.

/// A bijection of `0..n`.
#[derive(Clone, Copy)]
pub struct Permutation {
    n: u64,
    mask: u64,
    shift: u32,
    seed: u64,
}

impl Permutation {
    /// One of many; another `seed` is another order.
    pub fn new(n: u64, seed: u64) -> Permutation {
        let bits = n.max(2).next_power_of_two().trailing_zeros();
        Permutation { n, mask: (1 << bits) - 1, shift: bits.div_ceil(2), seed: hash(seed) }
    }

    /// Where `i` goes.
    pub fn apply(&self, i: u64) -> u64 {
        debug_assert!(i < self.n);
        let mut x = i;
        loop {
            x = x.wrapping_add(self.seed) & self.mask;
            x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9) & self.mask;
            x ^= x >> self.shift;
            x = x.wrapping_mul(0x94d0_49bb_1331_11eb) & self.mask;
            x ^= x >> self.shift;
            if x < self.n {
                return x;
            }
        }
    }
}

/// The finalizer of SplitMix64: a bijection of 64-bit words that changes about half of the bits for each one changed.
pub fn hash(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_comes_up_exactly_once() {
        for n in [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097] {
            for seed in 0..5 {
                let order = Permutation::new(n, seed);
                let mut seen = vec![false; n as usize];
                for i in 0..n {
                    assert!(
                        !std::mem::replace(&mut seen[order.apply(i) as usize], true),
                        "n={n} seed={seed} i={i}"
                    );
                }
            }
        }
    }

    #[test]
    fn neighbours_are_torn_apart() {
        let order = Permutation::new(1 << 16, 1);
        let near =
            (1..1 << 16).filter(|&i| order.apply(i).abs_diff(order.apply(i - 1)) < 512).count();
        // 2 * 512 / 65536 of the pairs would be near each other by chance: about 1024.
        assert!(near < 2048, "{near} of 65535 neighbours stayed within a block of each other");
    }
}
