//! The obvious way: a map under a lock, and a count a frame.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use super::pages::{PAGES, shuffled};

/// Translations by guest frame. A pin needs the lock, an unpin does not.
#[derive(Debug)]
pub(super) struct LockedTree {
    frame_of: RwLock<BTreeMap<u64, u64>>,
    pins: Box<[AtomicU64]>,
}

impl LockedTree {
    /// Page `i` is frame `i`; the pages came in no order, as a guest touches them.
    pub(super) fn new() -> LockedTree {
        let mut frame_of = BTreeMap::new();
        for page in shuffled(PAGES) {
            frame_of.insert(page, page);
        }
        LockedTree {
            frame_of: RwLock::new(frame_of),
            pins: (0..PAGES).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Pins a page and unpins it.
    #[inline(never)]
    pub(super) fn pin_unpin(&self, page: u64) {
        let frame = {
            let frame_of = self.frame_of.read().unwrap_or_else(PoisonError::into_inner);
            let frame = frame_of[&page];
            // Under the lock, or who unmaps the page would not see the pin.
            self.pins[frame as usize].fetch_add(1, Ordering::Relaxed);
            frame
        };
        self.pins[black_box(frame) as usize].fetch_sub(1, Ordering::Release);
    }
}
