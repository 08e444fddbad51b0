//! What the service did for one guest, in numbers.

use crate::collapse::CollapserStats;
use crate::mirrors::uffd::FaultStats;
use crate::pool::PoolUsage;
use crate::protocol::Protocol;
use crate::space::AddressSpace;
use crate::sync::{AtomicU64, Ordering};
use crate::table::Residency;

/// How devices' pins came about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct PinStats {
    /// Ranges that were pinned, most of them without any of what follows.
    pub ranges: u64,
    /// Pins that were taken back, because the table changed under them.
    pub changed: u64,
    /// Times that a collapse was waited for.
    pub frozen: u64,
    /// Pages that were faulted in first, or refused.
    pub faults: u64,
    /// Pages that kept changing, and were pinned under their table's lock.
    pub locked: u64,
    /// Pages that others used too, and that were given a copy first.
    pub shared: u64,
}

/// What the guest gave back. How much of it is still so, [`Residency::returned`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct BalloonStats {
    /// Pages that were given back.
    pub given_back: u64,
    /// Pages of them that were taken back before they were touched.
    pub taken_back: u64,
    /// Bytes of them whose memory went back to the host.
    pub returned_bytes: u64,
    /// Ranges that could not be given back.
    pub refused: u64,
}

/// The numbers, at one moment.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Stats {
    /// Violations that filled a leaf, by its size: 4 KiB, 2 MiB, 1 GiB.
    pub filled: [u64; 3],
    /// Violations on pages that were there already.
    pub present: u64,
    /// Violations that could not be served.
    pub refused: u64,
    /// Pages filled before they were touched.
    pub prefilled: u64,
    /// Pages that lie outside of their block's reservation.
    pub scattered: u64,
    /// Pages that were copied, because others use them too.
    pub unshared: u64,
    /// Violations on pages that are still elsewhere, and were asked for.
    pub asked: u64,
    /// Pages that arrived from elsewhere and were placed.
    pub placed: u64,
    /// Image pages that were mapped because one beside them was read.
    pub image_around: u64,
    /// What the guest gave back.
    pub balloon: BalloonStats,
    /// Pins.
    pub pins: PinStats,
    /// What the collapser did, where one runs.
    pub collapser: Option<CollapserStats>,
    /// Messages from the window, and in how many reads they came.
    pub messages: FaultStats,
    /// What is mapped.
    pub resident: Residency,
    /// The pool, all guests together.
    pub pool: PoolUsage,
    /// RAM of the guest, in bytes.
    pub ram_bytes: u64,
    /// Bytes of tables, frame states and window bookkeeping that this guest's RAM and pool cost.
    pub metadata_bytes: u64,
}

impl Stats {
    /// Violations of every outcome.
    pub fn violations(&self) -> u64 {
        self.filled.iter().sum::<u64>() + self.present + self.unshared + self.asked + self.refused
    }

    pub(crate) fn of<P: Protocol>(space: &AddressSpace<P>, messages: FaultStats) -> Stats {
        let counters = &space.counters;
        let [ranges, changed, frozen, faults, locked, shared] = space.pin_counts.sums();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let ram_bytes: u64 = space.ram.iter().map(|region| region.range.bytes()).sum();
        // 4 bytes a block is what the window keeps.
        let window = space.ram.iter().map(|r| r.range.frames().div_ceil(512) * 4).sum::<u64>();
        Stats {
            filled: counters.filled.each_ref().map(load),
            present: load(&counters.present),
            refused: load(&counters.refused),
            prefilled: load(&counters.prefilled),
            scattered: load(&counters.scattered),
            unshared: load(&counters.unshared),
            asked: load(&counters.asked),
            placed: load(&counters.placed),
            image_around: load(&counters.image_around),
            balloon: BalloonStats {
                given_back: load(&counters.given_back),
                taken_back: load(&counters.taken_back),
                returned_bytes: load(&counters.returned_bytes),
                refused: load(&counters.give_back_refused),
            },
            pins: PinStats { ranges, changed, frozen, faults, locked, shared },
            collapser: None,
            messages,
            resident: space.table.residency(),
            pool: space.pool.usage(),
            ram_bytes,
            metadata_bytes: space.table.metadata_bytes() + space.pool.metadata_bytes() + window,
        }
    }
}
