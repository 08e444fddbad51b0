//! When a detached table page may be used again.
//!
//! ```text
//! walk-vs-free            walker                          detacher
//!                         W1 enter (guard)                R1 clear the entry that points to the page
//!                         W2 load entry: a table          R2 wait until every guard of before R1 is
//!                         W3 load an entry of that page      gone
//!                         W4 leave                        R3 reuse the page
//!
//! Invariant   between W2 and W4 the page is not reused: what W3 reads belongs to the range that was
//!             walked for, perhaps stale, never another's.
//! Tolerated   W3 reads an entry of a page that is already detached. Whoever acts on it takes the
//!             page's lock and looks again (`cursor`, L3).
//! Origin      Linux 2667f50e8b81: with no IPI to wait for walkers, page tables are freed by RCU.
//! Variant     `FreeWithoutGrace` skips R2.
//! ```

use crate::entry::NodeNo;
use crate::protocol::Protocol;
use crate::sync::Arc;

use super::node::Arena;

/// Keeps the table pages that its holder can reach from being reused. Hold it for a walk, not longer.
pub(crate) use imp::Guard;
pub(crate) use imp::Reclaimer;

/// Gives `node`, detached just now, back to `arena` once no walker is left in it (R2, R3).
pub(crate) fn retire<P: Protocol>(reclaimer: &Reclaimer, arena: &Arc<Arena>, node: NodeNo) {
    if P::R2_GRACE_BEFORE_REUSE {
        reclaimer.defer(arena, node);
    } else {
        arena.free(node);
    }
}

#[cfg(not(loom))]
mod imp {
    use super::{Arc, Arena, NodeNo};

    #[derive(Debug)]
    pub(crate) struct Guard(crossbeam_epoch::Guard);

    impl Guard {
        /// Leaves for as long as `work` takes, which may wait for whatever it likes.
        pub(crate) fn outside<R>(&mut self, work: impl FnOnce() -> R) -> R {
            self.0.repin_after(work)
        }
    }

    /// The process-wide epochs of crossbeam. A page that was retired may wait in a thread's bag long
    /// after its tree has gone, and keeps the arena's words with it: address space, not memory, but for
    /// what the last tables touched.
    #[derive(Debug)]
    pub(crate) struct Reclaimer;

    impl Reclaimer {
        pub(crate) fn new() -> Reclaimer {
            Reclaimer
        }

        #[inline]
        pub(crate) fn enter(&self) -> Guard {
            Guard(crossbeam_epoch::pin())
        }

        pub(super) fn defer(&self, arena: &Arc<Arena>, node: NodeNo) {
            let arena = Arc::clone(arena);
            crossbeam_epoch::pin().defer(move || arena.free(node));
        }

        /// Moves retired pages along, when pages run out. Call without a guard; locks of attached tables
        /// may be held, since what is freed here is detached and locked by nobody for long.
        pub(crate) fn expedite(&self) {
            crossbeam_epoch::pin().flush();
            std::thread::yield_now();
        }
    }
}

/// A reader count in place of epochs: pages wait until nobody walks at all. Coarser than what ships,
/// and enough for the models, which ask what happens when nothing waits.
#[cfg(loom)]
mod imp {
    use super::{Arc, Arena, NodeNo};
    use crate::sync::Lock;

    #[derive(Debug, Default)]
    struct Waiting {
        walkers: usize,
        pages: Vec<(Arc<Arena>, NodeNo)>,
    }

    #[derive(Debug)]
    pub(crate) struct Guard(Arc<Lock<Waiting>>);

    #[derive(Debug)]
    pub(crate) struct Reclaimer(Arc<Lock<Waiting>>);

    impl Reclaimer {
        pub(crate) fn new() -> Reclaimer {
            Reclaimer(Arc::new(Lock::new(Waiting::default())))
        }

        pub(crate) fn enter(&self) -> Guard {
            let guard = Guard(Arc::clone(&self.0));
            guard.enter();
            guard
        }

        pub(super) fn defer(&self, arena: &Arc<Arena>, node: NodeNo) {
            let mut waiting = self.0.lock();
            if waiting.walkers > 0 {
                waiting.pages.push((Arc::clone(arena), node));
                return;
            }
            drop(waiting);
            arena.free(node);
        }

        pub(crate) fn expedite(&self) {
            loom::thread::yield_now();
        }
    }

    impl Guard {
        pub(crate) fn outside<R>(&mut self, work: impl FnOnce() -> R) -> R {
            self.leave();
            let result = work();
            self.enter();
            result
        }

        fn enter(&self) {
            self.0.lock().walkers += 1;
        }

        fn leave(&self) {
            let pages = {
                let mut waiting = self.0.lock();
                waiting.walkers -= 1;
                if waiting.walkers > 0 {
                    return;
                }
                std::mem::take(&mut waiting.pages)
            };
            for (arena, node) in pages {
                arena.free(node);
            }
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            self.leave();
        }
    }
}
