//! Collapse and split of blocks whose pages lie in place. `slat bench collapse` has them, and blocks that have to
//! be copied, beside their baselines.

mod guest;

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};

use guest_mm::addr::PageSize;
use guest_mm::collapse::CollapsePolicy;

use guest::{BLOCK, frames, guest};

const BLOCKS: u64 = 16;

fn promotion(c: &mut Criterion) {
    let (guest, _service) = guest(BLOCKS, PageSize::Size4K);
    let policy = CollapsePolicy::default();
    let block = |i: u64| frames(i % BLOCKS * BLOCK, BLOCK);
    let collapse = |i: u64| {
        let report = guest.collapse(block(i), policy).expect("a block in place collapses");
        assert_eq!(report.promoted, 1, "{report:?}");
    };
    let split = |i: u64| guest.split(block(i), PageSize::Size4K).expect("a block splits");
    let mut group = c.benchmark_group("collapse");
    group.bench_function("promotion", |b| {
        b.iter_custom(|rounds| {
            sum(rounds, |i| {
                let start = Instant::now();
                collapse(i);
                let took = start.elapsed();
                split(i);
                took
            })
        });
    });
    group.bench_function("split", |b| {
        b.iter_custom(|rounds| {
            sum(rounds, |i| {
                collapse(i);
                let start = Instant::now();
                split(i);
                start.elapsed()
            })
        });
    });
}

fn sum(rounds: u64, once: impl Fn(u64) -> Duration) -> Duration {
    (0..rounds).map(once).sum()
}

criterion_group!(benches, promotion);
criterion_main!(benches);
