//! Memory in which no two pages are the same.
#![allow(unsafe_code, reason = "reads memory through one plain slice, to be compared with")]

use std::hint::black_box;

use guest_mm::addr::{Gpa, GpaRange, PageSize};
use guest_mm::dedup::DedupPolicy;
use guest_mm::prot::Access;

use crate::bench::{BenchError, failed};

use super::served::{PAGE, Served};

/// Bytes that are read at once.
const BLOCK: u64 = PageSize::Size2M.bytes();

/// A guest whose pages all differ, and have been looked at once.
#[derive(Debug)]
pub(super) struct Distinct(Served);

impl Distinct {
    pub(super) fn new(bytes: u64) -> Result<Distinct, BenchError> {
        let served = Served::new(bytes / PAGE)?;
        let mut block = vec![0u8; BLOCK as usize];
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for start in (0..bytes).step_by(BLOCK as usize) {
            for word in block.chunks_exact_mut(8) {
                // Marsaglia's xorshift64.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_ne_bytes());
            }
            served.guest.write(Gpa::new(start), &block).map_err(failed)?;
        }
        let distinct = Distinct(served);
        distinct.scan()?;
        Ok(distinct)
    }

    /// One round of the scanner over all of it.
    pub(super) fn scan(&self) -> Result<(), BenchError> {
        let Served { service, ram, .. } = &self.0;
        let before = service.dedup_stats();
        let after = service.dedup_once(DedupPolicy::default());
        match (after.scanned - before.scanned == ram.frames(), after.merged + after.volatile) {
            (true, 0) => Ok(()),
            _ => Err(BenchError::Guest(format!("its pages are not what they were: {after:?}"))),
        }
    }

    /// Reads every word of it where the scanner does.
    pub(super) fn read(&self) -> Result<(), BenchError> {
        let Served { guest, ram, .. } = &self.0;
        for start in (0..ram.bytes()).step_by(BLOCK as usize) {
            let range = GpaRange::new(Gpa::new(start), BLOCK).map_err(failed)?;
            let pinned = guest.pin(range, Access::Read).map_err(failed)?;
            for slice in pinned.slices() {
                let bytes = slice.ptr_guard();
                // SAFETY:
                // 1. the slice is pinned, lies in order, and starts at a page: it is aligned for words;
                // 2. nobody writes to this guest's memory while it is measured.
                let words: &[u64] =
                    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), slice.len() / 8) };
                black_box(words.iter().fold(0u64, |sum, &word| sum.wrapping_add(word)));
            }
        }
        Ok(())
    }
}
