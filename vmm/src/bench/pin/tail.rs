//! How long a pin takes at worst, while another thread collapses and splits the blocks of the same guest.
#![allow(unsafe_code, reason = "reads the time stamp counter")]

use std::arch::x86_64::{__rdtscp, _mm_lfence, _rdtsc};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::bench::BenchError;

use super::pages::{BLOCK, PAGES};
use super::served::Served;

/// Pins, one by one, in cycles of the time stamp counter.
#[derive(Debug)]
pub(super) struct Tail {
    /// The median.
    pub(super) p50: f64,
    /// The 99th percentile.
    pub(super) p99: f64,
    /// Blocks that were collapsed a second meanwhile.
    pub(super) collapses: f64,
}

/// Times pins of `pages` under fire.
pub(super) fn tail(served: &Served, pages: &[u64]) -> Result<Tail, BenchError> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collapser = scope.spawn(|| {
            let (start, mut collapsed) = (Instant::now(), 0.0);
            for block in (0..PAGES / BLOCK).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                collapsed += f64::from(u8::from(served.collapse_and_split(block)?));
            }
            Ok::<f64, BenchError>(collapsed / start.elapsed().as_secs_f64())
        });
        let mut cycles: Vec<u64> = pages.iter().map(|&page| cycles_of_pin(served, page)).collect();
        stop.store(true, Ordering::Relaxed);
        let collapses = collapser.join().expect("the collapser does not panic")?;
        cycles.sort_unstable();
        let at = |percent: usize| cycles[cycles.len() * percent / 100] as f64;
        Ok(Tail { p50: at(50), p99: at(99), collapses })
    })
}

fn cycles_of_pin(served: &Served, page: u64) -> u64 {
    let mut cpu = 0;
    // SAFETY: every x86-64 processor has the counter and the fence; RDTSCP is as old as KVM.
    let start = unsafe {
        _mm_lfence();
        _rdtsc()
    };
    served.pin_unpin(page);
    // SAFETY: as above.
    let end = unsafe { __rdtscp(&mut cpu) };
    end.saturating_sub(start)
}
