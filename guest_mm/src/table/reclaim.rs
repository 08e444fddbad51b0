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
//!
//! [`super::epoch`] knows when R2 is over.

use crate::entry::NodeNo;
use crate::protocol::{Protocol, Step, Steps};
use crate::sync::Arc;

pub(crate) use super::epoch::Guard;
use super::epoch::Walkers;
use super::node::Arena;

/// Gives `node`, detached just now, back to `arena` once no walker is left in it (R2, R3).
pub(super) fn retire<P: Protocol>(walkers: &Walkers, arena: &Arc<Arena>, node: NodeNo) {
    if !P::takes(Steps::R2_GRACE_BEFORE_REUSE) {
        P::at(Step::R3);
        arena.free(node);
        return;
    }
    P::at(Step::R2);
    if walkers.note((Arc::clone(arena), node)) {
        collect(walkers);
    }
}

/// Gives back what no walker is left in. Locks of attached tables may be held: what is freed is detached, and
/// locked by nobody for long.
pub(super) fn collect(walkers: &Walkers) {
    walkers.collect().for_each(|(arena, node)| arena.free(node));
}
