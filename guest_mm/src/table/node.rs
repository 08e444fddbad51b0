//! Table pages: their words, their locks, and the arena they come from.

use crate::addr::{Gfn, GfnRange};
use crate::entry::NodeNo;
use crate::geometry::{FANOUT, Level};
use crate::pool::Reservation;
use crate::sync::{Apart, Arc, AtomicU32, AtomicU64, Held, Lock, Ordering, Rank, zeroed_words};

/// What a table's lock guards, beside the right to write its words.
#[derive(Debug)]
pub(crate) struct NodeState {
    /// Whether it hangs in the tree.
    pub(crate) attached: bool,
    /// Its level.
    pub(crate) level: Level,
    /// The first guest frame that it spans.
    pub(crate) base: Gfn,
    /// Words that are not zero.
    pub(crate) live: u32,
    /// Those of them that are markers.
    pub(crate) markers: u32,
    /// Where the pages of a page table prefer to lie.
    pub(crate) reservation: Option<Reservation>,
}

impl NodeState {
    /// The guest frames that the table spans.
    pub(crate) fn range(&self) -> GfnRange {
        GfnRange::new(self.base, self.level.table_frames()).expect("a table lies inside the tree")
    }
}

/// All table pages of one tree. A page is named by its index, as a frame of the pool is; the words are
/// one array, which the host backs as it is touched.
#[derive(Debug)]
pub(crate) struct Arena {
    words: Apart<Box<[AtomicU64]>>,
    states: Box<[Lock<NodeState>]>,
    free: Lock<Vec<NodeNo>>,
    /// Pages below this index have been used once.
    fresh: AtomicU32,
}

/// The words of all tables of an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<'a>(&'a [AtomicU64]);

impl<'a> Tables<'a> {
    /// Where word `index` of `node` is among all words.
    #[inline]
    pub(crate) fn index(node: NodeNo, index: usize) -> usize {
        node.index() * FANOUT + index
    }

    /// The word at `index` of all.
    #[inline]
    pub(crate) fn word(self, index: usize) -> &'a AtomicU64 {
        &self.0[index]
    }
}

/// A page that waits for its walkers, and where it goes back to.
pub(super) type Retired = (Arc<Arena>, NodeNo);

/// A page was freed while it still held entries.
const NOT_EMPTY: &str = "non-empty table freed";

impl Arena {
    /// Room for `nodes` table pages.
    pub(crate) fn new(nodes: usize) -> Arena {
        let vacant = || {
            Lock::new(
                Rank::Detached,
                NodeState {
                    attached: false,
                    level: Level::PT,
                    base: Gfn::new(0),
                    live: 0,
                    markers: 0,
                    reservation: None,
                },
            )
        };
        Arena {
            words: Apart::new(zeroed_words(nodes * FANOUT)),
            states: (0..nodes).map(|_| vacant()).collect(),
            free: Lock::new(Rank::Last, Vec::new()),
            fresh: AtomicU32::new(0),
        }
    }

    /// Bytes of locks and states, touched or not; the words are counted by use.
    pub(crate) fn state_bytes(&self) -> u64 {
        (self.states.len() * size_of::<Lock<NodeState>>()) as u64
    }

    /// Word `index` of `node`.
    pub(crate) fn word(&self, node: NodeNo, index: usize) -> &AtomicU64 {
        debug_assert!(index < FANOUT);
        &self.words[node.index() * FANOUT + index]
    }

    /// The words of all tables. Taken once for a walk: asked for at every level, the address would be loaded
    /// at every level.
    #[inline]
    pub(crate) fn tables(&self) -> Tables<'_> {
        Tables(&self.words)
    }

    /// Takes the lock of `node`.
    pub(crate) fn lock(&self, node: NodeNo) -> Held<'_, NodeState> {
        self.states[node.index()].lock_as(|state| Rank::table(state.level))
    }

    /// Takes the lock of `node` by one who holds that of a frozen table below it.
    pub(crate) fn lock_above_frozen(&self, node: NodeNo) -> Held<'_, NodeState> {
        self.states[node.index()].lock_above_frozen(|state| Rank::table(state.level))
    }

    /// An empty table page for `level` from `base` on, locked: it counts as attached, and its caller publishes
    /// it before the lock is released, because who waits for it since it was this range's table the last
    /// time takes it for that. None when every page is in use or waits for its walkers.
    pub(crate) fn alloc(&self, level: Level, base: Gfn) -> Option<(NodeNo, Held<'_, NodeState>)> {
        let recycled = self.free.lock().pop();
        let node = recycled.or_else(|| {
            self.fresh
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                    ((next as usize) < self.states.len()).then_some(next + 1)
                })
                .ok()
                .map(NodeNo::new)
        })?;
        let mut state = self.states[node.index()].lock_as(|_| Rank::table(level));
        *state = NodeState { attached: true, level, base, live: 0, markers: 0, reservation: None };
        Some((node, state))
    }

    /// Gives a detached page back for reuse. No walker may be in it.
    ///
    /// # Panics
    /// If an entry is left in it: the page that it maps would be lost.
    pub(crate) fn free(&self, node: NodeNo) {
        {
            let state = self.states[node.index()].lock();
            let clean = !state.attached && state.live == 0;
            let zero = (0..FANOUT).all(|i| self.word(node, i).load(Ordering::Relaxed) == 0);
            assert!(clean && zero, "{NOT_EMPTY}");
        }
        self.free.lock().push(node);
    }
}
