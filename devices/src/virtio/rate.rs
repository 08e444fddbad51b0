//! Rate limits: token buckets that are filled as time goes by.

use std::time::{Duration, Instant};

/// So much in a second, and as much at once after a second's rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Tokens in a second, at least 1.
    pub per_second: u64,
}

/// A bucket of tokens.
#[derive(Clone, Debug)]
struct Bucket {
    per_second: u64,
    /// In billionths of a token. Below zero after one that was larger than the bucket.
    level: i128,
    filled: Instant,
}

const NANO: i128 = 1_000_000_000;

impl Bucket {
    fn new(limit: Limit, now: Instant) -> Bucket {
        let per_second = limit.per_second.max(1);
        Bucket { per_second, level: i128::from(per_second) * NANO, filled: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_nanos() as i128;
        let rate = i128::from(self.per_second);
        self.level = (self.level + passed.min(NANO * 3600) * rate).min(rate * NANO);
        self.filled = now;
    }

    /// How long until something may be taken.
    fn wait(&self) -> Duration {
        let missing = (1 - self.level).max(0);
        Duration::from_nanos((missing as u128).div_ceil(self.per_second.into()) as u64)
    }
}

/// Limits on bytes and on requests, either or none.
#[derive(Clone, Debug)]
pub struct Limiter {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
    held_up: u64,
}

impl Limiter {
    /// These limits, nothing used of them.
    pub fn new(bytes: Option<Limit>, requests: Option<Limit>) -> Limiter {
        let now = Instant::now();
        let bucket = |limit: Option<Limit>| limit.map(|limit| Bucket::new(limit, now));
        Limiter { bytes: bucket(bytes), requests: bucket(requests), held_up: 0 }
    }

    /// Takes one request of `bytes`. A request that is larger than what is left goes, and those behind it wait longer: it
    /// could never go otherwise.
    ///
    /// # Errors
    /// How long to wait before it may go. Nothing is taken.
    pub fn take(&mut self, bytes: u64) -> Result<(), Duration> {
        if self.bytes.is_none() && self.requests.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        let mut wait = Duration::ZERO;
        for bucket in [&mut self.bytes, &mut self.requests].into_iter().flatten() {
            bucket.fill(now);
            wait = wait.max(bucket.wait());
        }
        if !wait.is_zero() {
            self.held_up += 1;
            return Err(wait);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.level -= i128::from(bytes) * NANO;
        }
        if let Some(bucket) = &mut self.requests {
            bucket.level -= NANO;
        }
        Ok(())
    }

    /// How often a request was held up.
    pub fn held_up(&self) -> u64 {
        self.held_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_second_at_once_and_then_what_time_brings() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Limit { per_second: 100 }, start);
        bucket.level -= 100 * NANO;
        assert_eq!(bucket.wait(), Duration::from_nanos(1));
        bucket.level -= 50 * NANO;
        bucket.fill(start + Duration::from_millis(400));
        assert_eq!(bucket.level, -10 * NANO);
        assert!(
            bucket.wait() > Duration::from_millis(99)
                && bucket.wait() <= Duration::from_millis(101)
        );
        bucket.fill(start + Duration::from_secs(1 << 40));
        assert_eq!(bucket.level, 100 * NANO, "no more than a second's");
    }

    #[test]
    fn requests_larger_than_the_limit_go_and_delay_those_behind_them() {
        let mut limiter = Limiter::new(Some(Limit { per_second: 1000 }), None);
        limiter.take(5000).unwrap();
        let wait = limiter.take(1).unwrap_err();
        assert!(wait > Duration::from_millis(3900) && wait <= Duration::from_secs(5), "{wait:?}");
        assert_eq!(limiter.held_up(), 1);
    }

    #[test]
    fn without_limits_nothing_waits() {
        let mut limiter = Limiter::new(None, None);
        (0..1000).for_each(|_| limiter.take(u64::MAX).unwrap());
        assert_eq!(limiter.held_up(), 0);
    }
}
