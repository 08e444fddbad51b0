//! The same work on one thread and on two.

use std::sync::Barrier;

use crate::bench::turns::time_each;

/// Times over that each thread takes its pages: long enough that starting does not count.
const PASSES: usize = 2;

/// Items a microsecond of all threads together, each of which does `once` for every item of its part.
pub(super) fn rate(parts: &[&[u64]], once: impl Fn(u64) + Sync) -> f64 {
    let start = Barrier::new(parts.len());
    std::thread::scope(|scope| {
        let run = |part: &[u64]| {
            start.wait();
            let ns: f64 = (0..PASSES).map(|_| time_each(part, &once)).sum();
            1e3 * PASSES as f64 / ns
        };
        let threads: Vec<_> = parts.iter().map(|&part| scope.spawn(move || run(part))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a pin does not panic")).sum()
    })
}
