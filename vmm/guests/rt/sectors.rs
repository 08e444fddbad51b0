//! What the guest `blk` writes to sectors, so that one in the wrong place, an old one, or a torn one shows.
//!
//! Of the 64 words of a sector, the first is its number, the second is the sequence of its write, and each other one is a hash
//! of both and its place.

use crate::permutation::hash;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// What is wrong with a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The sector.
    pub sector: u64,
    /// The word of it, 0 to 63.
    pub word: usize,
    /// What was written.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

/// Fills `buffer`, whole sectors from `first` on, for the write of `sequence`.
pub fn fill(buffer: &mut [u8], first: u64, sequence: u64) {
    for (sector, bytes) in (first..).zip(buffer.chunks_exact_mut(SECTOR)) {
        for (word, bytes) in bytes.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&pattern(sector, word, sequence).to_le_bytes());
        }
    }
}

/// The first word of `buffer` that is not what [`fill`] writes.
pub fn check(buffer: &[u8], first: u64, sequence: u64) -> Result<(), Mismatch> {
    for (sector, bytes) in (first..).zip(buffer.chunks_exact(SECTOR)) {
        for (word, bytes) in bytes.chunks_exact(8).enumerate() {
            let found = bytes.iter().rev().fold(0, |found, &byte| found << 8 | u64::from(byte));
            let expected = pattern(sector, word, sequence);
            if found != expected {
                return Err(Mismatch { sector, word, expected, found });
            }
        }
    }
    Ok(())
}

fn pattern(sector: u64, word: usize, sequence: u64) -> u64 {
    match word {
        0 => sector,
        1 => sequence,
        _ => hash(hash(sector << 6 | word as u64) ^ sequence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_checks_and_every_flaw_is_found() {
        let mut buffer = vec![0; 4 * SECTOR];
        fill(&mut buffer, 100, 7);
        assert_eq!(check(&buffer, 100, 7), Ok(()));
        assert_eq!(buffer[2 * SECTOR..][..9], [102, 0, 0, 0, 0, 0, 0, 0, 7]);
        let moved = check(&buffer, 101, 7).unwrap_err();
        assert_eq!((moved.word, moved.expected, moved.found), (0, 101, 100));
        let old = check(&buffer, 100, 8).unwrap_err();
        assert_eq!((old.sector, old.word, old.found), (100, 1, 7));
        let last = buffer.len() - 1;
        buffer[last] ^= 0x80;
        let torn = check(&buffer, 100, 7).unwrap_err();
        assert_eq!((torn.sector, torn.word), (103, 63));
        assert_eq!(torn.found ^ torn.expected, 1 << 63);
    }
}
