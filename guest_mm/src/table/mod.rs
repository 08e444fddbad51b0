//! The second-stage table: a radix tree in Intel's EPT format.
//!
//! * [`node`]: table pages, one lock each;
//! * [`cursor`]: the only writer, holding one page's lock; [`below`]: what it does to the tables below;
//! * [`walk`]: the lockless reader;
//! * [`reclaim`]: when a detached page may be reused; [`epoch`]: who is inside of a walk;
//! * [`zap`]: what a writer owes the mirror;
//! * [`visit`]: the whole tree, for audits and maps.
//!
//! # Lock order
//! 0. the thread that looks for duplicates, while it is started or ended;
//! 1. the list of guests, while the pool's books are checked;
//! 2. the pages of an image's block that are being loaded: let go before a table is locked;
//! 3. the right to fill a block (`space::FillLocks`);
//! 4. a table page before its children, the root first; never two of one level;
//! 5. a mirror's own locks;
//! 6. a table page that is in no tree;
//! 7. the pool's books; lists of free pages, of walkers, of notes.
//!
//! These are the ranks of [`crate::sync`]; with debug assertions each lock is held against those that its thread has.
//!
//! One exception: who has frozen a page table (`cursor::freeze`) holds its lock and takes its parent's. Nobody
//! waits the other way round: a frozen table is locked by those alone who hold no other lock of the tree.
//!
//! A page's lock is held over mirror calls for its entries: about 1 us for a page, 50 us for a block, and
//! longest where a window is pointed elsewhere (`mirrors::uffd`).

mod below;
pub(crate) mod cursor;
pub(crate) mod epoch;
pub(crate) mod node;
pub(crate) mod reclaim;
mod residency;
pub(crate) mod visit;
pub(crate) mod walk;
pub(crate) mod zap;

use std::marker::PhantomData;

use crate::addr::{Gfn, GfnRange};
use crate::entry::{Entry, Marker, NodeNo};
use crate::geometry::{FANOUT, Level};
use crate::protocol::Protocol;
use crate::sync::{Apart, Arc};

use epoch::Walkers;
use node::Arena;
use reclaim::Guard;
pub use residency::Residency;
use residency::Resident;

/// No table page is left: more pages wait for their walkers than the arena has slack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no table page is left for guest-physical {gfn:#x}000")]
pub struct OutOfTables {
    /// The guest frame that needed one.
    pub gfn: u64,
}

/// The root's page.
const ROOT: NodeNo = NodeNo::new(0);

/// The tree.
#[derive(Debug)]
pub(crate) struct Table<P: Protocol> {
    arena: Apart<Arc<Arena>>,
    walkers: Walkers,
    resident: Resident,
    protocol: PhantomData<P>,
}

impl<P: Protocol> Table<P> {
    /// An empty tree with room for tables over `ranges`.
    pub(crate) fn new(ranges: &[GfnRange]) -> Table<P> {
        let arena = Arc::new(Arena::new(nodes_for(ranges)));
        let root = arena.alloc(Level::ROOT, Gfn::new(0)).map(|(node, _)| node);
        assert!(root == Some(ROOT), "the first page of an arena is the root");
        let table = Table {
            arena: Apart::new(arena),
            walkers: Walkers::new(),
            resident: Resident::default(),
            protocol: PhantomData,
        };
        table.resident.table_made(Level::ROOT);
        table
    }

    /// Keeps table pages from being reused under a walk.
    #[inline]
    pub(crate) fn enter(&self) -> Guard {
        self.walkers.enter()
    }

    /// What is mapped, by the books that every writer keeps.
    pub(crate) fn residency(&self) -> Residency {
        self.resident.snapshot()
    }

    /// Whether anything may be marked so. Without a lock it is a statement about the past.
    pub(crate) fn has_any(&self, marker: Marker) -> bool {
        self.resident.has_any(marker)
    }

    /// Bytes of table pages in use and of the states of all.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        let tables: u64 = self.residency().tables.iter().sum();
        tables * (FANOUT as u64 * 8) + self.arena.state_bytes()
    }
}

/// Table pages that a tree over `ranges` can ever need, with as many page tables again that may be
/// waiting for their walkers.
fn nodes_for(ranges: &[GfnRange]) -> usize {
    let mut nodes = 1 + FANOUT;
    for level in 1..Level::ROOT.number() {
        let span = Level::new(level).table_frames();
        let tables: usize = ranges.iter().map(|range| range.chunks(span).count()).sum();
        nodes += if level == 1 { 2 * tables } else { tables };
    }
    nodes
}

impl<P: Protocol> Drop for Table<P> {
    fn drop(&mut self) {
        // Or its pages, and the arena with them, wait for somebody else's tree to change.
        #[cfg(not(loom))]
        reclaim::collect(&self.walkers);
    }
}

/// What a word means.
///
/// # Panics
/// If it means nothing: only a bug of this crate, or broken memory, writes such a word.
fn decode(raw: u64, level: Level) -> Entry {
    match Entry::decode(raw, level) {
        Ok(entry) => entry,
        Err(malformed) => panic!("{malformed}"),
    }
}
