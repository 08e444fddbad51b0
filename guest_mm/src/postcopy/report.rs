//! What is told of a migration, while it goes on and when it is over.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How far a migration is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The other side is awaited, or asked.
    #[default]
    Connecting,
    /// Pages go while the guest runs at the source.
    PreCopy,
    /// The guest runs nowhere.
    SwitchOver,
    /// Pages go while the guest runs at the sink.
    PostCopy,
    /// The connection is gone, and the guest waits where it must.
    Broken,
    /// All is there.
    Done,
}

/// A moment of a migration.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// How far it is.
    pub phase: Phase,
    /// Rounds of the pre-copy, the one under way included.
    pub rounds: u32,
    /// Pages that went or came so far, pages of zeroes and pages that went twice included.
    pub pages: u64,
    /// Bytes of them on the wire.
    pub bytes: u64,
    /// Pages that are still to go or to come, as far as is known.
    pub left: u64,
    /// Pages that were requested.
    pub requests: u64,
    /// Since it began, in seconds.
    pub seconds: f64,
}

/// What who watches wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watch {
    /// It goes on.
    GoOn,
    /// It is called off, as far as that is possible by now.
    Cancel,
    /// The guest has ended where it runs by now: no page is needed any more.
    Ended,
}

/// How long things took, in microseconds: by buckets that are an eighth of their value wide at most.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// Buckets for each power of two.
const STEPS: u64 = 8;

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: vec![0; 40 * STEPS as usize], count: 0, max: 0 }
    }
}

impl Histogram {
    /// Notes one.
    pub fn add(&mut self, time: Duration) {
        let micros = time.as_micros() as u64;
        let last = self.buckets.len() - 1;
        self.buckets[bucket(micros).min(last)] += 1;
        self.count += 1;
        self.max = self.max.max(micros);
    }

    /// How many were noted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest, in microseconds.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// What `share` of them (0.5: the median) did not exceed, in microseconds; none of none.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let rank = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.buckets.iter().position(|&count| {
            seen += count;
            seen >= rank
        })?;
        (self.count > 0).then(|| (floor(found + 1) - 1).min(self.max))
    }

    /// The buckets that are not empty: from how many microseconds on, and how many.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let all = self.buckets.iter().enumerate().map(|(at, &count)| (floor(at), count));
        all.filter(|&(_, count)| count > 0)
    }
}

fn bucket(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let power = micros.ilog2() - STEPS.ilog2();
    (u64::from(power) * STEPS + (micros >> power)) as usize
}

/// The least number of microseconds of a bucket.
fn floor(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let power = bucket / STEPS - 1;
    (bucket % STEPS + STEPS) << power
}

impl Serialize for Histogram {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Told {
            count: u64,
            p50_us: Option<u64>,
            p90_us: Option<u64>,
            p99_us: Option<u64>,
            max_us: u64,
            /// From how many microseconds on, and how many.
            buckets: Vec<(u64, u64)>,
        }
        Told {
            count: self.count,
            p50_us: self.quantile(0.5),
            p90_us: self.quantile(0.9),
            p99_us: self.quantile(0.99),
            max_us: self.max,
            buckets: self.buckets().collect(),
        }
        .serialize(serializer)
    }
}

/// What had come by when: a point every so often, and less often the longer it takes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Timeline {
    points: Vec<Point>,
    #[serde(skip)]
    every: Duration,
}

/// What had come by then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Point {
    /// Since the beginning, in milliseconds.
    pub ms: u64,
    /// Pages in bulk.
    pub bulk: u64,
    /// Pages that were requested.
    pub urgent: u64,
}

/// Most points that are kept.
const POINTS: usize = 512;

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline { points: Vec::new(), every: Duration::from_millis(5) }
    }
}

impl Timeline {
    /// Notes how many pages there are, if it is time; it began at `began`.
    pub fn note(&mut self, began: Instant, bulk: u64, urgent: u64) {
        let ms = began.elapsed().as_millis() as u64;
        let due = self.points.last().map_or(0, |last| last.ms + self.every.as_millis() as u64);
        if ms < due {
            return;
        }
        if self.points.len() == POINTS {
            let mut at = 0;
            self.points.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.every *= 2;
        }
        self.points.push(Point { ms, bulk, urgent });
    }

    /// The points, in order.
    pub fn points(&self) -> &[Point] {
        &self.points
    }
}

/// What a source did.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SourceReport {
    /// The last moment.
    pub progress: Progress,
    /// From the guest's stop to the word that it runs at the sink, in milliseconds.
    pub downtime_ms: f64,
    /// Of that, until devices and vCPUs were at rest and their state was there.
    pub stop_ms: f64,
    /// Bytes of the machine's state.
    pub state_bytes: u64,
    /// Pages that were missing at the sink when the guest began to run there.
    pub missing_at_start: u64,
    /// Pages that were zeroes, and so not sent.
    pub zero_pages: u64,
    /// Connections that broke and were replaced.
    pub reconnects: u32,
    /// The guest ended at the sink before all of it was there.
    pub guest_ended: bool,
}

/// What a sink did.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct SinkReport {
    /// The last moment.
    pub progress: Progress,
    /// Pages that came a second time.
    pub duplicates: u64,
    /// Waits for a page that somebody had asked for already.
    pub joined: u64,
    /// From a request to its page.
    pub waits: Histogram,
    /// What came when.
    pub arrival: Timeline,
    /// Blocks that came whole, or became whole when their last page came.
    pub huge_blocks: u64,
    /// From the guest's start to its last page, in milliseconds.
    pub postcopy_ms: f64,
    /// Connections that broke and were replaced.
    pub reconnects: u32,
    /// What was wrong with each of them, in order: the first [`MOST_TROUBLES`].
    pub troubles: Vec<String>,
}

/// Most connections of which it is told what was wrong with them.
pub const MOST_TROUBLES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_say() {
        for micros in (0..2000).chain([123_456, 9_999_999]) {
            let at = bucket(micros);
            assert!(floor(at) <= micros && micros < floor(at + 1), "{micros} in bucket {at}");
            assert!(floor(at + 1) - floor(at) <= 1 + micros / 8, "bucket {at} is too wide");
        }
    }

    #[test]
    fn quantiles_are_within_an_eighth() {
        let mut waits = Histogram::default();
        assert_eq!(waits.quantile(0.5), None);
        (1..=1000).for_each(|micros| waits.add(Duration::from_micros(micros)));
        for (share, exact) in [(0.5, 500), (0.99, 990), (1.0, 1000)] {
            let found = waits.quantile(share).unwrap();
            assert!((exact..=exact + exact / 8).contains(&found), "{share}: {found}");
        }
        assert_eq!((waits.count(), waits.max()), (1000, 1000));
    }

    #[test]
    fn a_timeline_stays_short() {
        let mut line = Timeline::default();
        let began = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        line.note(began, 1, 0);
        line.note(began, 2, 0);
        assert_eq!(line.points().len(), 1);
        for ms in 0..20_000 {
            let Some(began) = Instant::now().checked_sub(Duration::from_millis(1000 + ms)) else {
                return;
            };
            line.note(began, ms, 1);
        }
        assert!(line.points().len() <= POINTS);
        assert!(line.points().windows(2).all(|pair| pair[0].ms < pair[1].ms));
    }
}
