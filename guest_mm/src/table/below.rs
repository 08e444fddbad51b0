//! What a cursor does to the tables below its own: they are made, split off a huge leaf, detached, frozen, and
//! replaced by a leaf. Steps are those of `lock-vs-detach` ([`super::cursor`]).

use crate::addr::{FrameNo, Gfn, GfnRange};
use crate::entry::{Entry, Leaf, Marker, NodeNo, Source};
use crate::geometry::{FANOUT, Level};
use crate::mirror::Run;
use crate::pool::Reservation;
use crate::protocol::Protocol;
use crate::sync::Ordering;

use super::OutOfTables;
use super::cursor::{Cursor, Ended};
use super::reclaim::retire;
use super::zap::{FrameRuns, Published, Unreachable, Zap};

impl<'t, P: Protocol> Cursor<'t, P> {
    /// Replaces the huge leaf or marker at `gfn` by a table of the level below that says the same: the
    /// same frames, the same rights, so nothing is owed to the mirror. `reservation` is what the freed
    /// pages of a page table go back to.
    ///
    /// # Errors
    /// [`OutOfTables`]; nothing has changed.
    ///
    /// # Panics
    /// If there is no huge leaf or marker.
    pub(crate) fn split(
        &mut self,
        gfn: Gfn,
        reservation: impl FnOnce(FrameNo) -> Option<Reservation>,
    ) -> Result<(), OutOfTables> {
        let entry = self.entry(gfn);
        let Some(below) = self.level().below() else { panic!("a page has no parts") };
        let base = gfn.align_down(self.level().entry_frames());
        let out = OutOfTables { gfn: gfn.as_u64() };
        let mut child = self.table.alloc(below, base).ok_or(out)?;
        child.state.live = FANOUT as u32;
        let resident = &self.table.resident;
        match entry {
            Entry::Leaf(leaf) => {
                if below == Level::PT && leaf.source == Source::Guest {
                    child.state.reservation = reservation(leaf.frame);
                }
                resident.leaves_gone(self.level(), leaf.source, 1);
                resident.leaves_made(below, leaf.source, FANOUT as u64);
            }
            Entry::Marker(marker) => {
                self.state.markers -= 1;
                child.state.markers = FANOUT as u32;
                // In this order: none is never told while there is one.
                resident.markers_made(below, marker, FANOUT as u64);
                resident.markers_gone(self.level(), marker, 1);
            }
            _ => panic!("guest frame {gfn} is not mapped or marked huge: {entry:?}"),
        }
        for i in 0..FANOUT {
            let part = match entry {
                Entry::Leaf(leaf) => {
                    let frame = leaf.frame.add(i as u64 * below.entry_frames());
                    Entry::Leaf(Leaf { frame, ..leaf })
                }
                other => other,
            };
            // Relaxed: published by the release below.
            self.table.arena.word(child.node, i).store(part.encode(below), Ordering::Relaxed);
        }
        // While the child is locked: who waits for it finds it in the tree.
        self.publish(gfn, Entry::Table(child.node));
        self.table.resident.table_made(below);
        Ok(())
    }

    /// Takes the table below `gfn`, and all that is mapped in it, out of the tree. The reservations of
    /// its page tables are the caller's to end, once the zap is flushed.
    ///
    /// # Panics
    /// If there is no table below.
    pub(crate) fn detach(&mut self, gfn: Gfn) -> (Zap<'_>, Ended) {
        let Entry::Table(child) = self.entry(gfn) else { panic!("guest frame {gfn} has no table") };
        let range = GfnRange::entry(gfn, self.level());
        let (mut frames, mut ended) = (FrameRuns::default(), Ended::new());
        self.detach_child(gfn, child, &mut frames, &mut ended);
        (Zap::unmapped(range, frames), ended)
    }

    /// As [`Cursor::detach`], if a table is there and nothing at all is mapped in it.
    pub(crate) fn detach_empty(&mut self, gfn: Gfn) -> Option<(Zap<'_>, Ended)> {
        let Entry::Table(child) = self.entry(gfn) else { return None };
        // D1. The look and the detaching are one step under the child's lock.
        let below = self.child(child);
        if !below.is_empty() {
            return None;
        }
        let mut ended = Ended::new();
        self.unhook(gfn, below, &mut ended);
        let range = GfnRange::entry(gfn, self.level());
        Some((Zap::unmapped(range, FrameRuns::default()), ended))
    }

    /// Puts one marker in the place of the table below `gfn`, if there is one and each of its entries is `marker`. Both say
    /// the same, and neither is in the window: nothing is owed.
    pub(crate) fn fold(&mut self, gfn: Gfn, marker: Marker) -> Option<Ended> {
        let Entry::Table(child) = self.entry(gfn) else { return None };
        // D1. The look and the folding are one step under the child's lock.
        let mut below = self.child(child);
        if !below.is_all(marker) {
            return None;
        }
        // D2. The marker first: a walker finds the page marked either way.
        self.publish(gfn, Entry::Marker(marker));
        self.state.markers += 1;
        for inner in below.entries_in(below.range()) {
            below.publish(inner, Entry::Absent);
        }
        (below.state.live, below.state.markers) = (0, 0);
        let resident = &self.table.resident;
        resident.markers_gone(below.level(), marker, FANOUT as u64);
        resident.markers_made(self.level(), marker, 1);
        Some(below.end())
    }

    fn detach_child(&mut self, gfn: Gfn, child: NodeNo, frames: &mut FrameRuns, ended: &mut Ended) {
        // D1. Parent before child, as everywhere.
        let mut below = self.child(child);
        for inner in below.entries_in(below.range()) {
            match below.entry(inner) {
                Entry::Table(grandchild) => below.detach_child(inner, grandchild, frames, ended),
                Entry::Frozen(_) => panic!("{inner} is being collapsed during a teardown"),
                _ => below.clear(inner, frames),
            }
        }
        self.unhook(gfn, below, ended);
    }

    fn child(&self, child: NodeNo) -> Cursor<'t, P> {
        Cursor { table: self.table, node: child, state: self.table.arena.lock(child) }
    }

    fn unhook(&mut self, gfn: Gfn, below: Cursor<'t, P>, ended: &mut Ended) {
        // D2, which is R1 of `reclaim`.
        self.publish(gfn, Entry::Absent);
        self.state.live -= 1;
        ended.extend(below.end());
    }

    /// The page table below `gfn`, locked too, if one is there and not frozen.
    pub(crate) fn below(&self, gfn: Gfn) -> Option<Cursor<'t, P>> {
        // Nobody freezes the table while this lock is held, so who has the child's lock needs no other.
        let Entry::Table(child) = self.entry(gfn) else { return None };
        Some(self.child(child))
    }

    /// Puts a leaf in the place of the page table `below`, whose entries map the leaf's frames in order: a
    /// promotion. Old and new say the same, so no zap is owed.
    pub(crate) fn promote(
        &mut self,
        gfn: Gfn,
        below: Cursor<'t, P>,
        leaf: Leaf,
    ) -> (Published<'_>, Ended) {
        debug_assert!(self.entry(gfn) == Entry::Table(below.node));
        let (published, _same_frames, ended) = self.supersede(gfn, below, leaf);
        (published, ended)
    }

    /// Takes the page table `below` out of every walker's sight, and nothing else: its entries stay. The
    /// zap that is owed is bound to its lock, so this table's may be released.
    pub(crate) fn freeze<'b>(&mut self, gfn: Gfn, below: &'b mut Cursor<'t, P>) -> Zap<'b> {
        debug_assert!(self.entry(gfn) == Entry::Table(below.node));
        self.publish(gfn, Entry::Frozen(below.node));
        Zap::unmapped(below.range(), FrameRuns::default())
    }

    /// Takes a frozen table back into sight: all is as it was.
    pub(crate) fn thaw(&mut self, gfn: Gfn, below: &Cursor<'t, P>) {
        debug_assert!(self.entry(gfn) == Entry::Frozen(below.node));
        self.publish(gfn, Entry::Table(below.node));
    }

    /// Puts `leaf` in the place of the frozen page table `below`. `flushed` is what became of the zap that
    /// freezing it owed: with it nobody can reach the frames that `below` maps, and they are returned.
    pub(crate) fn replace(
        &mut self,
        gfn: Gfn,
        below: Cursor<'t, P>,
        leaf: Leaf,
        flushed: Unreachable,
    ) -> (Published<'_>, Unreachable, Ended) {
        debug_assert!(self.entry(gfn) == Entry::Frozen(below.node));
        let (published, frames, ended) = self.supersede(gfn, below, leaf);
        (published, flushed.with(frames), ended)
    }

    fn supersede(
        &mut self,
        gfn: Gfn,
        mut below: Cursor<'t, P>,
        leaf: Leaf,
    ) -> (Published<'_>, FrameRuns, Ended) {
        let mut frames = FrameRuns::default();
        // The leaf first: a walker finds the old entries or the new one, never an absent page.
        self.publish(gfn, Entry::Leaf(leaf));
        self.table.resident.leaves_made(self.level(), leaf.source, 1);
        let mut leaves = [(Source::Guest, 0), (Source::Image, 0)];
        for inner in below.entries_in(below.range()) {
            if let Entry::Leaf(leaf) = below.entry(inner) {
                frames.push_leaf(leaf, below.level().entry_frames());
                leaves[leaf.source as usize].1 += 1;
            }
            below.publish(inner, Entry::Absent);
        }
        // A subtraction for each kind, not 512.
        for (source, count) in leaves {
            self.table.resident.leaves_gone(below.level(), source, count);
        }
        (below.state.live, below.state.markers) = (0, 0);
        let ended = below.end();
        let run = Run { gfn, frame: leaf.frame, frames: self.level().entry_frames() };
        (Published::new(run, leaf.prot), frames, ended)
    }

    /// D2 and D3 for a table that no entry leads to any more.
    fn end(mut self) -> Ended {
        let ended = self.state.reservation.take().into_iter().collect();
        self.state.attached = false;
        self.table.resident.table_gone(self.level());
        let (table, node) = (self.table, self.node);
        drop(self);
        retire::<P>(&table.walkers, &table.arena, node);
        ended
    }

    /// A new table below the absent entry for `gfn`, locked.
    pub(crate) fn make_child(&mut self, gfn: Gfn) -> Option<Cursor<'t, P>> {
        let below = self.level().below()?;
        let child = self.table.alloc(below, gfn.align_down(below.table_frames()))?;
        self.publish(gfn, Entry::Table(child.node));
        self.state.live += 1;
        self.table.resident.table_made(below);
        Some(child)
    }
}
