//! A log-linear histogram: 32 buckets to each power of two, so a quantile is read to within 1/32 of its value.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

const SUB_BITS: usize = 5;
const SUB: usize = 1 << SUB_BITS;
/// Values from 2^36 on, half a minute of a processor's cycles, share the last bucket: a guest has one of these for each CPU, and little
/// room below its second MiB.
const TOP: usize = 36;
/// 32 exact buckets below 32, then 32 for each of the exponents 5 to 35.
const BUCKETS: usize = SUB + (TOP - SUB_BITS) * SUB;

/// Counts of values. All relaxed: written by one CPU, read by another after a barrier.
pub struct Histogram {
    buckets: [AtomicU32; BUCKETS],
    max: AtomicU64,
}

impl Histogram {
    /// Nothing counted.
    #[allow(clippy::new_without_default)] // Only ever made in a static.
    pub const fn new() -> Histogram {
        Histogram { buckets: [const { AtomicU32::new(0) }; BUCKETS], max: AtomicU64::new(0) }
    }

    /// Counts `value`.
    pub fn record(&self, value: u64) {
        self.buckets[bucket(value)].fetch_add(1, Relaxed);
        self.max.fetch_max(value, Relaxed);
    }

    /// Adds the counts of `other`.
    pub fn merge(&self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter().zip(&other.buckets) {
            mine.fetch_add(theirs.load(Relaxed), Relaxed);
        }
        self.max.fetch_max(other.max.load(Relaxed), Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| u64::from(bucket.load(Relaxed))).sum()
    }

    /// The value that `percent` of all values do not exceed, as the upper edge of its bucket; 0 if nothing was counted.
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        for (i, count) in self.buckets.iter().enumerate() {
            seen += u64::from(count.load(Relaxed));
            if seen >= wanted && seen > 0 {
                return upper_edge(i).min(self.max());
            }
        }
        0
    }

    /// The largest value, exactly.
    pub fn max(&self) -> u64 {
        self.max.load(Relaxed)
    }
}

fn bucket(value: u64) -> usize {
    let value = value.min((1 << TOP) - 1);
    if value < SUB as u64 {
        return value as usize;
    }
    let exponent = 63 - value.leading_zeros() as usize;
    let sub = (value >> (exponent - SUB_BITS)) as usize & (SUB - 1);
    (exponent + 1 - SUB_BITS) * SUB + sub
}

fn upper_edge(bucket: usize) -> u64 {
    if bucket == BUCKETS - 1 {
        return u64::MAX;
    }
    if bucket < SUB {
        return bucket as u64;
    }
    let width = bucket / SUB - 1;
    let low = (SUB + bucket % SUB) as u64;
    (low << width) + ((1 << width) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_below_the_edge_of_its_bucket_by_a_32nd_at_most() {
        for value in (0..TOP as u64)
            .flat_map(|e| [1u64 << e, (1u64 << e) + 1, (1u64 << e) - 1, (2u64 << e) - (1 << e) / 8])
            .filter(|&value| bucket(value) < BUCKETS - 1)
        {
            let edge = upper_edge(bucket(value));
            assert!(edge >= value && edge - value <= value / SUB as u64, "{value}: {edge}");
        }
        assert_eq!([u64::MAX, 1 << TOP, (1 << TOP) - 1].map(bucket), [BUCKETS - 1; 3]);
        assert_eq!(upper_edge(BUCKETS - 2), (1 << TOP) - (1 << (TOP - SUB_BITS - 1)) - 1);
    }

    #[test]
    fn percentiles_of_two_halves() {
        let (a, b) = (Histogram::new(), Histogram::new());
        (1..=50).for_each(|v| a.record(v * 100));
        (51..=100).for_each(|v| b.record(v * 100));
        a.merge(&b);
        for percent in [1, 50, 99] {
            let (got, exact) = (a.percentile(percent), percent * 100);
            assert!(got >= exact && got <= exact + exact / SUB as u64, "p{percent}={got}");
        }
        assert_eq!(a.max(), 10_000);
        assert_eq!(Histogram::new().percentile(50), 0);
    }
}
