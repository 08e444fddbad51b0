//! Bytes that look random and follow from a seed, so that what was written can be told from what was read without keeping it.

/// A stream of such bytes, and how far it was used.
#[derive(Clone, Debug)]
pub(crate) struct Noise {
    seed: u64,
    at: u64,
}

/// A word that looks random for each `index` (the finaliser of SplitMix64).
pub(crate) fn word(seed: u64, index: u64) -> u64 {
    let mut word = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Noise {
    /// The stream of `seed`, from its start.
    pub(crate) fn new(seed: u64) -> Noise {
        Noise { seed, at: 0 }
    }

    /// The bytes up to the next border of a word, at most `most`.
    fn next(&mut self, most: usize) -> ([u8; 8], usize, usize) {
        let word = word(self.seed, self.at / 8).to_le_bytes();
        let from = (self.at % 8) as usize;
        let to = (from + most).min(8);
        self.at += (to - from) as u64;
        (word, from, to)
    }

    /// Fills `buffer` with what comes next.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            let (word, from, to) = self.next(rest.len());
            let (now, later) = rest.split_at_mut(to - from);
            now.copy_from_slice(&word[from..to]);
            rest = later;
        }
    }

    /// How many bytes of `buffer` are not what comes next.
    pub(crate) fn wrong(&mut self, buffer: &[u8]) -> u64 {
        let mut rest = buffer;
        let mut wrong = 0;
        while !rest.is_empty() {
            let (word, from, to) = self.next(rest.len());
            let (now, later) = rest.split_at(to - from);
            if now != &word[from..to] {
                wrong += now.iter().zip(&word[from..to]).filter(|(a, b)| a != b).count() as u64;
            }
            rest = later;
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let mut whole = [0; 1000];
        Noise::new(7).fill(&mut whole);
        for cut in [1, 3, 8, 13, 999] {
            let (mut parts, mut noise) = ([0; 1000], Noise::new(7));
            parts.chunks_mut(cut).for_each(|part| noise.fill(part));
            assert_eq!(parts, whole, "{cut}");
            let mut noise = Noise::new(7);
            assert_eq!(whole.chunks(cut).map(|part| noise.wrong(part)).sum::<u64>(), 0, "{cut}");
        }
    }

    #[test]
    fn each_wrong_byte_is_counted() {
        let mut bytes = [0; 100];
        Noise::new(1).fill(&mut bytes);
        for at in [0, 17, 18, 99] {
            bytes[at] ^= 1;
        }
        assert_eq!(Noise::new(1).wrong(&bytes), 4);
        assert!(Noise::new(2).wrong(&bytes) > 80);
    }
}
