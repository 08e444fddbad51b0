//! Which pages are pinned, and in which order.

/// Pages of the guest: 256 MiB, far more than the nearest caches have words for.
pub(super) const PAGES: u64 = 1 << 16;
/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
/// Pages of a block.
pub(super) const BLOCK: u64 = 512;

/// The numbers from 0 to `count`, each once, in an order that is random and the same in every run.
pub(super) fn shuffled(count: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for last in (1..numbers.len()).rev() {
        numbers.swap(last, random.below(last as u64 + 1) as usize);
    }
    numbers
}

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_comes_once_and_not_in_order() {
        let pages = shuffled(1000);
        let mut sorted = pages.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert!(pages.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() < 10);
    }
}
