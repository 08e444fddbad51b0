//! Whether bytes look random. What is broken shows: zeroes, a counter, a word over and over again.

/// Standard deviations that a figure may be away from what it should be: random bytes fail about once in a billion looks.
const SIGMAS: u64 = 7;

/// How often each byte came up.
pub struct Tally {
    counts: [u64; 256],
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { counts: [0; 256] }
    }
}

impl Tally {
    /// The least number of bytes that say anything: each is to come up 16 times.
    pub const LEAST: u64 = 4096;

    /// Counts `bytes`.
    pub fn add(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.counts[usize::from(byte)] += 1);
    }

    /// Bytes counted.
    pub fn bytes(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Bits that are one.
    pub fn ones(&self) -> u64 {
        (0u64..).zip(&self.counts).map(|(byte, count)| u64::from(byte.count_ones()) * count).sum()
    }

    /// Pearson's chi-square of the byte values, 255 degrees of freedom: 255 is expected, with a deviation of 22.6.
    pub fn chi_square(&self) -> u64 {
        let bytes = self.bytes();
        let squares: u128 = self.counts.iter().map(|&count| u128::from(count).pow(2)).sum();
        match bytes {
            0 => 0,
            _ => (squares * 256 / u128::from(bytes)).saturating_sub(u128::from(bytes)) as u64,
        }
    }

    /// Are as many bits ones as not? The deviation is half of the square root of the number of bits.
    pub fn bits_are_even(&self) -> bool {
        let bits = 8 * self.bytes();
        (2 * self.ones()).abs_diff(bits) <= SIGMAS * bits.isqrt()
    }

    /// Do all bytes come up as often as they should, neither less nor more evenly?
    pub fn bytes_are_even(&self) -> bool {
        // The deviation is the square root of 2 * 255.
        self.chi_square().abs_diff(255) <= SIGMAS * 226 / 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::permutation::hash;

    fn tally(byte: impl Fn(u64) -> u8) -> Tally {
        let mut tally = Tally::default();
        tally.add(&(0..Tally::LEAST).map(byte).collect::<Vec<u8>>());
        tally
    }

    #[test]
    fn random_bytes_pass_whatever_their_seed() {
        for seed in 0..200u64 {
            let tally = tally(|i| hash(seed << 32 | i) as u8);
            assert!(tally.bits_are_even() && tally.bytes_are_even(), "{}", tally.chi_square());
        }
    }

    #[test]
    fn broken_sources_fail() {
        let zeroes = tally(|_| 0);
        assert!(!zeroes.bits_are_even() && !zeroes.bytes_are_even());
        assert_eq!((zeroes.ones(), zeroes.chi_square()), (0, 255 * Tally::LEAST));
        let counter = tally(|i| i as u8);
        assert!(counter.bits_are_even() && !counter.bytes_are_even(), "too even to be true");
        assert!(!tally(|i| hash(i) as u8 & 0x7f).bytes_are_even(), "seven bits");
        assert!(!tally(|i| hash(i % 8) as u8).bytes_are_even(), "a word over and over again");
    }
}
