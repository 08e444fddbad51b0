//! The lockless reader.

use std::marker::PhantomData;

use crate::addr::{FrameNo, Gfn};
use crate::entry::{Entry, NodeNo};
use crate::geometry::{FANOUT, Level};
use crate::prot::Access;
use crate::protocol::{Protocol, Step, Steps};
use crate::sync::Ordering;

pub(crate) use super::node::Tables;
use super::reclaim::Guard;
use super::{ROOT, Table, decode};

/// Where a walk ended. A statement about the past: whoever acts on it locks and looks again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Walked {
    /// The entry that translates the address, or says that none does.
    pub(crate) entry: Entry,
    /// The level of the table that it is in.
    pub(crate) level: Level,
}

/// The word in which a walk ended, to be looked at again by whoever acts without a lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located<'g> {
    tables: Tables<'g>,
    /// Which word of the arena it is.
    index: usize,
    raw: u64,
    level: Level,
    /// The word that led to the table, and what it said; the word itself for the root.
    parent: usize,
    parent_raw: u64,
}

/// A page directory, kept at hand for walks under one guard: they are two loads shorter. It may leave the tree meanwhile;
/// then its entries are clear, and a pin's second looks find that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Directory<'g> {
    node: NodeNo,
    first: Gfn,
    tables: PhantomData<Tables<'g>>,
}

impl Directory<'_> {
    /// Whether it spans `gfn`.
    #[inline]
    pub(crate) fn spans(&self, gfn: Gfn) -> bool {
        gfn.align_down(Level::PD.table_frames()) == self.first
    }
}

impl<P: Protocol> Table<P> {
    /// Follows the tables to the entry for `gfn`, without a lock (`reclaim`: W2 and W3; the guard is W1, its
    /// drop W4).
    pub(crate) fn walk(&self, guard: &Guard, gfn: Gfn) -> Walked {
        let found = self.locate(guard, gfn);
        Walked { entry: found.entry(), level: found.level }
    }

    /// As [`Table::walk`]; the result can be looked at again for as long as the guard is held.
    #[inline]
    pub(crate) fn locate<'g>(&'g self, guard: &'g Guard, gfn: Gfn) -> Located<'g> {
        self.tables(guard).locate::<P>(gfn)
    }

    /// The words of all tables, for walks under one guard.
    #[inline]
    pub(crate) fn tables<'g>(&'g self, _guard: &'g Guard) -> Tables<'g> {
        self.arena.tables()
    }
}

impl<'g> Tables<'g> {
    /// See [`Table::locate`].
    #[inline(always)]
    pub(crate) fn locate<P: Protocol>(self, gfn: Gfn) -> Located<'g> {
        self.locate_from::<P>(Level::ROOT, ROOT, gfn)
    }

    /// As [`Tables::locate`], for a `gfn` that `directory` spans.
    #[inline(always)]
    pub(crate) fn locate_in<P: Protocol>(self, directory: Directory<'g>, gfn: Gfn) -> Located<'g> {
        debug_assert!(directory.spans(gfn));
        self.locate_from::<P>(Level::PD, directory.node, gfn)
    }

    /// The page directory that spans `gfn`, if there is one.
    pub(crate) fn directory(self, gfn: Gfn) -> Option<Directory<'g>> {
        let (mut level, mut node) = (Level::ROOT, ROOT);
        while level > Level::PD {
            let index = Tables::index(node, level.index(gfn.as_u64()));
            // Acquire, as below.
            node = Entry::table(self.word(index).load(Ordering::Acquire))?;
            level = level.below()?;
        }
        let first = gfn.align_down(Level::PD.table_frames());
        Some(Directory { node, first, tables: PhantomData })
    }

    #[inline(always)]
    fn locate_from<P: Protocol>(self, mut level: Level, node: NodeNo, gfn: Gfn) -> Located<'g> {
        let mut index = Tables::index(node, level.index(gfn.as_u64()));
        // Acquire, with the release of `Cursor::publish`: the words of a table are zeroed or filled before
        // the entry that leads to it can be seen.
        let mut raw = self.word(index).load(Ordering::Acquire);
        let (mut parent, mut parent_raw) = (index, raw);
        while let Some(below) = level.below()
            && let Some(child) = Entry::table(raw)
        {
            (parent, parent_raw) = (index, raw);
            level = below;
            index = Tables::index(child, level.index(gfn.as_u64()));
            if level == Level::PT {
                P::at(Step::W3);
            }
            raw = self.word(index).load(Ordering::Acquire);
        }
        Located { tables: self, index, raw, level, parent, parent_raw }
    }
}

impl Located<'_> {
    /// The level of the table that the entry is in.
    #[inline]
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// What the entry said.
    pub(crate) fn entry(&self) -> Entry {
        decode(self.raw, self.level)
    }

    /// The first frame of the leaf, if it is one that allows `access`.
    #[inline]
    pub(crate) fn frame_for(&self, access: Access) -> Option<FrameNo> {
        Entry::frame_for(self.raw, access)
    }

    /// Whether it is a leaf of the guest's own.
    #[inline]
    pub(crate) fn is_of_guest(&self) -> bool {
        Entry::is_of_guest(self.raw)
    }

    /// P4 of `pin`: whether the entry still says what it said.
    #[inline]
    pub(crate) fn is_unchanged<P: Protocol>(&self) -> bool {
        // Ordered behind the pin by the full barrier of P3. Acquire: the mark (P6) is looked at after it, and
        // what was done to the page before it was mapped is seen by the pin's holder.
        let order =
            if P::takes(Steps::P4_READ_BARRIER) { Ordering::Acquire } else { Ordering::Relaxed };
        self.tables.word(self.index).load(order) == self.raw
    }

    /// P5 of `pin`: whether the entry above still leads to this table.
    #[inline]
    pub(crate) fn is_attached(&self) -> bool {
        // Acquire, as above.
        self.tables.word(self.parent).load(Ordering::Acquire) == self.parent_raw
    }

    /// The next entry of the same table, or none at its end.
    #[inline]
    pub(crate) fn next(&self) -> Option<Self> {
        let index = self.index + 1;
        if index.is_multiple_of(FANOUT) {
            return None;
        }
        // Acquire, as in `locate`.
        let raw = self.tables.word(index).load(Ordering::Acquire);
        Some(Located { index, raw, ..*self })
    }
}
