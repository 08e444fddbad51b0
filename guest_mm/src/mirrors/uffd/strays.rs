//! Pages of a window that are mappings of their own.

use std::collections::BTreeMap;

use crate::addr::{FrameNo, Gfn, GfnRange};
use crate::sync::{AtomicU64, Lock, Ordering, Rank};

/// A page that is a mapping of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stray {
    /// Where it points.
    pub(super) frame: FrameNo,
    /// Whether the host fills it by itself.
    pub(super) open: bool,
}

/// Such pages, most of which point elsewhere than their block does. A page's entry is changed under the lock
/// of its page table, as all of its mirror calls are made; the lock here keeps the map whole.
#[derive(Debug)]
pub(super) struct Strays {
    pages: Lock<BTreeMap<Gfn, Stray>>,
    /// How many there are, so that nobody looks where there are none.
    nr: AtomicU64,
}

impl Default for Strays {
    fn default() -> Strays {
        Strays { pages: Lock::new(Rank::Mirror, BTreeMap::new()), nr: AtomicU64::new(0) }
    }
}

impl Strays {
    /// Whether there are none at all.
    pub(super) fn is_empty(&self) -> bool {
        self.nr.load(Ordering::Relaxed) == 0
    }

    /// The page at `gfn`, if it is one.
    pub(super) fn get(&self, gfn: Gfn) -> Option<Stray> {
        if self.is_empty() { None } else { self.pages.lock().get(&gfn).copied() }
    }

    /// Whether a page of `range` is one.
    pub(super) fn any_in(&self, range: GfnRange) -> bool {
        self.find(range, |_| true)
    }

    /// Whether a page of `range` is one that the host fills by itself.
    pub(super) fn any_open_in(&self, range: GfnRange) -> bool {
        self.find(range, |stray| stray.open)
    }

    fn find(&self, range: GfnRange, wanted: impl Fn(&Stray) -> bool) -> bool {
        !self.is_empty()
            && self.pages.lock().range(range.start()..range.end()).any(|(_, stray)| wanted(stray))
    }

    /// Whether each page of `range` points to its frame from `frame` on; a page that is no stray points to its
    /// frame from `home` on.
    pub(super) fn point_to(&self, range: GfnRange, frame: FrameNo, home: FrameNo) -> bool {
        let pages = self.pages.lock();
        range.iter().enumerate().all(|(i, gfn)| {
            let home = home.add(i as u64);
            pages.get(&gfn).map_or(home, |stray| stray.frame) == frame.add(i as u64)
        })
    }

    /// The page at `gfn` is one now.
    pub(super) fn insert(&self, gfn: Gfn, stray: Stray) {
        self.change(|pages| {
            pages.insert(gfn, stray);
        });
    }

    /// No page of `range` is one any more.
    pub(super) fn remove(&self, range: GfnRange) {
        if self.is_empty() {
            return;
        }
        self.change(|pages| {
            while let Some((&gfn, _)) = pages.range(range.start()..range.end()).next() {
                pages.remove(&gfn);
            }
        });
    }

    /// What reaches from the first to the last page of `range` that the host fills by itself.
    pub(super) fn open_span(&self, range: GfnRange) -> Option<GfnRange> {
        if self.is_empty() {
            return None;
        }
        let pages = self.pages.lock();
        let open = || pages.range(range.start()..range.end()).filter(|(_, stray)| stray.open);
        let first = *open().next()?.0;
        let last = *open().next_back()?.0;
        GfnRange::new(first, last.as_u64() - first.as_u64() + 1).ok()
    }

    /// The pages of `range` that the host fills by itself.
    pub(super) fn open_in(&self, range: GfnRange) -> Vec<Gfn> {
        let pages = self.pages.lock();
        let pages = pages.range(range.start()..range.end());
        pages.filter(|(_, stray)| stray.open).map(|(&gfn, _)| gfn).collect()
    }

    /// The host fills no page of `range` by itself any more.
    pub(super) fn close(&self, range: GfnRange) {
        let mut pages = self.pages.lock();
        pages.range_mut(range.start()..range.end()).for_each(|(_, stray)| stray.open = false);
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Gfn, Stray>)) {
        let mut pages = self.pages.lock();
        change(&mut pages);
        self.nr.store(pages.len() as u64, Ordering::Relaxed);
    }
}
