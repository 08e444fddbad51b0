//! The lockless reader.

use crate::addr::Gfn;
use crate::entry::Entry;
use crate::geometry::Level;
use crate::protocol::Protocol;
use crate::sync::Ordering;

use super::reclaim::Guard;
use super::{Table, decode};

/// Where a walk ended. A statement about the past: whoever acts on it locks and looks again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Walked {
    /// The entry that translates the address, or says that none does.
    pub(crate) entry: Entry,
    /// The level of the table that it is in.
    pub(crate) level: Level,
}

impl<P: Protocol> Table<P> {
    /// Follows the tables to the entry for `gfn`, without a lock (`reclaim`: W2 and W3; the guard is W1, its
    /// drop W4).
    pub(crate) fn walk(&self, _guard: &Guard, gfn: Gfn) -> Walked {
        let mut node = self.root;
        let mut level = Level::ROOT;
        loop {
            // Acquire, with the release of `Cursor::publish`: the words of a table are zeroed or
            // filled before the entry that leads to it can be seen.
            let raw = self.arena.word(node, level.index(gfn.as_u64())).load(Ordering::Acquire);
            match (decode(raw, level), level.below()) {
                (Entry::Table(child), Some(below)) => (node, level) = (child, below),
                (entry, _) => return Walked { entry, level },
            }
        }
    }
}
