//! What becomes of memory while a disk reads into it at full rate.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devices::dma::Dma;
use guest_mm::CollapserConfig;
use guest_mm::addr::{Gfn, GfnRange, PageSize};
use guest_mm::collapse::CollapsePolicy;

use crate::bench::{BenchError, failed};

use super::served::{Bench, Served, Work};

/// Pages of a block.
const PAGES: u64 = PageSize::Size2M.frames();
/// Blocks that a disk reads into, each of pages that lie anywhere. They are behind the rings' block.
const BLOCKS: u64 = 48;
/// The first of them.
const FIRST: u64 = 1;

/// Bytes from the rings' block to the last of those.
pub(super) const BYTES: u64 = (FIRST + BLOCKS) * PAGES * 4096;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Blocks of those that are one huge page now, in percent.
    pub(super) huge: f64,
    /// Bytes that were pinned, on an average.
    pub(super) pinned: f64,
    /// Requests in a second meanwhile.
    pub(super) rate: f64,
}

/// Memory of which every block of those has its pages anywhere.
///
/// Holders take a page of each block of the pool, so that none is whole; pages that are filled in turns then lie side by
/// side with those of other blocks. When the holders go, blocks become whole that a collapse can copy to.
pub(super) fn scattered() -> Result<Served, BenchError> {
    let broken = (BLOCKS * PAGES).div_ceil(PAGES - 1);
    let holders = broken + BLOCKS + 1;
    let served = Served::bare(FIRST + BLOCKS + holders, FIRST + holders, PageSize::Size4K)?;
    let fill = |first: u64, pages: u64| {
        let range = GfnRange::new(Gfn::new(first), pages).map_err(failed)?;
        served.guest.populate(range).map_err(failed)
    };
    fill(0, PAGES)?;
    let behind = FIRST + BLOCKS;
    for holder in 0..holders {
        fill((behind + holder) * PAGES, 1)?;
    }
    for page in 0..PAGES {
        for block in FIRST..behind {
            fill(block * PAGES + page, 1)?;
        }
    }
    let held = GfnRange::new(Gfn::new(behind * PAGES), holders * PAGES).map_err(failed)?;
    served.guest.unmap(held).map_err(failed)?;
    Ok(served)
}

/// Reads 4 KiB pages into those blocks through `dma` for `time`, while the collapser does what it can.
pub(super) fn under_load<D: Dma>(
    served: &mut Served,
    dma: &D,
    file: &File,
    time: Duration,
) -> Result<Found, BenchError> {
    let work = Work { bytes: 4096, depth: 8, sequential: false, buffers: BLOCKS * PAGES };
    let mut bench = Bench::new(dma, served.seen()?, file)?;
    let policy = CollapsePolicy::default();
    let config = CollapserConfig { policy, scan_rate: None, copy_budget: None };
    served.guest.start_collapser(config).map_err(BenchError::System)?;
    let stop = AtomicBool::new(false);
    let guest = &served.guest;
    let (requests, took, samples) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut requests, start) = (0, Instant::now());
            while !stop.load(Ordering::Relaxed) {
                bench.run(work, 1000)?;
                requests += 1000;
            }
            Ok::<_, BenchError>((requests, start.elapsed()))
        });
        let end = Instant::now() + time;
        let mut samples = Vec::new();
        while Instant::now() < end && !load.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
            let pinned: u64 = guest.memory_map().blocks.iter().map(|b| u64::from(b.pinned)).sum();
            samples.push(pinned as f64);
        }
        stop.store(true, Ordering::Relaxed);
        let (requests, took) = load.join().expect("the load does not panic")?;
        Ok::<_, BenchError>((requests, took, samples))
    })?;
    guest.pause_collapser();
    let map = guest.memory_map();
    let blocks = map.blocks.iter().skip(FIRST as usize).take(BLOCKS as usize);
    let huge = blocks.filter(|block| u64::from(block.huge) == PAGES).count();
    Ok(Found {
        huge: huge as f64 * 100.0 / BLOCKS as f64,
        pinned: samples.iter().sum::<f64>() / samples.len().max(1) as f64 * 4096.0,
        rate: f64::from(requests) / took.as_secs_f64(),
    })
}
