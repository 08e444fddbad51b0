//! The whole tree, entry by entry.

use crate::addr::Gfn;
use crate::entry::{Entry, NodeNo};
use crate::geometry::{FANOUT, Level};
use crate::protocol::Protocol;
use crate::sync::Ordering;

use super::{ROOT, Table, decode};

/// One entry that is not absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Visited {
    /// The first guest frame that it spans.
    pub(crate) gfn: Gfn,
    /// The level of its table.
    pub(crate) level: Level,
    /// What it says.
    pub(crate) entry: Entry,
}

impl<P: Protocol> Table<P> {
    /// Calls `see` for every entry that is not absent, in the order of addresses, a table before its
    /// entries. Without locks: while others write, each entry is right for some moment of the visit.
    pub(crate) fn visit(&self, mut see: impl FnMut(Visited)) {
        let _guard = self.enter();
        self.visit_node(ROOT, Level::ROOT, Gfn::new(0), &mut see);
    }

    fn visit_node(&self, node: NodeNo, level: Level, base: Gfn, see: &mut impl FnMut(Visited)) {
        for index in 0..FANOUT {
            // Acquire, as in `walk`.
            let raw = self.arena.word(node, index).load(Ordering::Acquire);
            let entry = decode(raw, level);
            let gfn = base.add(index as u64 * level.entry_frames());
            if entry != Entry::Absent {
                see(Visited { gfn, level, entry });
            }
            if let (Entry::Table(child) | Entry::Frozen(child), Some(below)) =
                (entry, level.below())
            {
                self.visit_node(child, below, gfn, see);
            }
        }
    }
}
