//! How much is mapped, by kind: books that every writer keeps and every audit checks. A wrong counter is
//! how Linux noticed most of the races that this crate is about ("Bad rss-counter state").

use crate::addr::PageSize;
use crate::entry::{Marker, Source};
use crate::geometry::Level;
use crate::sync::{AtomicU64, Ordering};

/// The counters of one tree, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Residency {
    /// Leaves by size: 4 KiB, 2 MiB, 1 GiB.
    pub leaves: [u64; 3],
    /// Those of them that map an image, by size.
    pub image: [u64; 3],
    /// Tables by level, page tables first; the root is the last.
    pub tables: [u64; 4],
    /// Entries that are markers, by kind: missing, guard, poison, returned.
    pub markers: [u64; 4],
    /// Pages that are marked returned: one marker may stand for a block.
    pub returned: u64,
}

impl Residency {
    /// Frames that leaves map, an image's included.
    pub fn frames(&self) -> u64 {
        frames(self.leaves)
    }

    /// Frames of images that leaves map.
    pub fn image_frames(&self) -> u64 {
        frames(self.image)
    }
}

fn frames(leaves: [u64; 3]) -> u64 {
    PageSize::ALL.iter().zip(leaves).map(|(size, n)| size.frames() * n).sum()
}

/// The live counters.
#[derive(Debug, Default)]
pub(super) struct Resident {
    leaves: [AtomicU64; 3],
    image: [AtomicU64; 3],
    tables: [AtomicU64; 4],
    markers: [AtomicU64; 4],
    returned: AtomicU64,
}

// Statistics: nothing is ordered by them. A counter that is read while its table's lock is held, or at
// rest, is exact.
const ORDER: Ordering = Ordering::Relaxed;

impl Resident {
    pub(super) fn leaves_gone(&self, level: Level, source: Source, count: u64) {
        let size = level.number() as usize - 1;
        self.leaves[size].fetch_sub(count, ORDER);
        if source == Source::Image {
            self.image[size].fetch_sub(count, ORDER);
        }
    }

    pub(super) fn leaves_made(&self, level: Level, source: Source, count: u64) {
        let size = level.number() as usize - 1;
        self.leaves[size].fetch_add(count, ORDER);
        if source == Source::Image {
            self.image[size].fetch_add(count, ORDER);
        }
    }

    pub(super) fn table_made(&self, level: Level) {
        self.tables[level.number() as usize - 1].fetch_add(1, ORDER);
    }

    pub(super) fn table_gone(&self, level: Level) {
        self.tables[level.number() as usize - 1].fetch_sub(1, ORDER);
    }

    pub(super) fn markers_made(&self, level: Level, marker: Marker, count: u64) {
        self.markers[marker.index()].fetch_add(count, ORDER);
        if marker == Marker::Returned {
            self.returned.fetch_add(count * level.entry_frames(), ORDER);
        }
    }

    pub(super) fn markers_gone(&self, level: Level, marker: Marker, count: u64) {
        self.markers[marker.index()].fetch_sub(count, ORDER);
        if marker == Marker::Returned {
            self.returned.fetch_sub(count * level.entry_frames(), ORDER);
        }
    }

    pub(super) fn has_any(&self, marker: Marker) -> bool {
        self.markers[marker.index()].load(ORDER) > 0
    }

    pub(super) fn snapshot(&self) -> Residency {
        let load = |counter: &AtomicU64| counter.load(ORDER);
        Residency {
            leaves: self.leaves.each_ref().map(load),
            image: self.image.each_ref().map(load),
            tables: self.tables.each_ref().map(load),
            markers: self.markers.each_ref().map(load),
            returned: load(&self.returned),
        }
    }
}
