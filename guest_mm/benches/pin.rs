//! Pins: a page, a batch of pages, a block. `slat bench pin` has them beside their baselines.

mod guest;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use guest_mm::addr::{GpaRange, PageSize};
use guest_mm::prot::Access;

use guest::{BLOCK, frames, guest};

const BLOCKS: u64 = 128;
const PAGES: u64 = BLOCKS * BLOCK;
/// Odd, so that its multiples visit every page, and far from one page to the next.
const STRIDE: u64 = 40_503;

fn pages(c: &mut Criterion) {
    let (guest, _service) = guest(BLOCKS, PageSize::Size4K);
    let mut group = c.benchmark_group("pin");
    group.bench_function("one hot page", |b| {
        let page = GpaRange::from(frames(PAGES / 3, 1));
        b.iter(|| guest.pin(black_box(page), Access::Write).map(drop));
    });
    group.bench_function("scattered pages", |b| {
        let mut next = 0;
        b.iter(|| {
            next = (next + STRIDE) % PAGES;
            guest.pin(GpaRange::from(frames(next, 1)), Access::Write).map(drop)
        });
    });
    group.throughput(Throughput::Elements(64));
    group.bench_function("batch of 64 scattered pages", |b| {
        let mut batch = guest.pin_batch();
        batch.reserve(64, 64);
        let mut next = 0;
        b.iter(|| {
            let ranges = (0..64).map(|i| frames((next + i * STRIDE) % PAGES, 1));
            let pinned = batch.pin(ranges.map(|page| (page.into(), Access::Write)));
            next = (next + 64 * STRIDE) % PAGES;
            batch.unpin();
            pinned
        });
    });
}

fn blocks(c: &mut Criterion) {
    let (guest, _service) = guest(BLOCKS, PageSize::Size2M);
    let mut next = 0;
    c.bench_function("pin/a block in one leaf", |b| {
        b.iter(|| {
            next = (next + 1) % BLOCKS;
            guest.pin(GpaRange::from(frames(next * BLOCK, BLOCK)), Access::Write).map(drop)
        });
    });
}

criterion_group!(benches, pages, blocks);
criterion_main!(benches);
