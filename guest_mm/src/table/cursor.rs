//! The only writer: a table page, locked, and what can be done to its entries.
//!
//! ```text
//! lock-vs-detach          writer                          detacher (holds the parent's lock)
//!                         L1 walk to the page (guard)     D1 lock the page
//!                                                         D2 clear the parent's entry, `attached` off
//!                         L2 lock the page                D3 unlock, retire (`reclaim`, R2)
//!                         L3 attached, and still this
//!                            range's? else L1 again
//!                         L4 write entries
//!                         L5 unlock
//!
//! Invariant   an entry is only written to a page that hangs in the tree: what is mapped can be found,
//!             unmapped and counted.
//! Tolerated   L2 waits for a page that is detached meanwhile, and perhaps another range's table by the
//!             time that the lock is held. No guard is held for so long; L3 sends the writer back.
//! Origin      Linux 0d940a9b270b: a page table can go away between finding and locking it, so
//!             `pte_offset_map_lock` may fail.
//! Variant     `LockWithoutRecheck` skips L3.
//! ```

use crate::addr::{Gfn, GfnRange};
use crate::entry::{Entry, Leaf, Marker, NodeNo, Source};
use crate::geometry::{FANOUT, Level};
use crate::mirror::Run;
use crate::pool::Reservation;
use crate::prot::Prot;
use crate::protocol::{Protocol, Step, Steps};
use crate::sync::{AtomicU64, Held, Ordering, own_word};

use super::node::{Arena, NodeState};
use super::reclaim::{Guard, collect};
use super::zap::{FrameRuns, Published, Zap};
use super::{OutOfTables, ROOT, Table, decode};

/// A locked table page that hangs in the tree. Dropping it unlocks (L5).
#[derive(Debug)]
pub(crate) struct Cursor<'t, P: Protocol> {
    pub(super) table: &'t Table<P>,
    pub(super) node: NodeNo,
    pub(super) state: Held<'t, NodeState>,
}

/// What became of the reservations under a detached table.
pub(crate) type Ended = Vec<Reservation>;

/// How often an exhausted arena is waited for.
const TRIES_FOR_A_TABLE: u32 = 10_000;

impl<P: Protocol> Table<P> {
    /// Locks the table of `level` that spans `gfn`, making the tables above it; or, where a leaf or a
    /// marker of a higher level spans it, the table that this one is in.
    ///
    /// # Errors
    /// [`OutOfTables`] when the tables on the way cannot be made.
    pub(crate) fn cursor_at(&self, gfn: Gfn, level: Level) -> Result<Cursor<'_, P>, OutOfTables> {
        let mut cursor = self.cursor_on(gfn, level);
        while cursor.level() > level && cursor.entry(gfn) == Entry::Absent {
            // The parent stays locked while the child is made and locked: no writer comes between.
            cursor = cursor.make_child(gfn).ok_or(OutOfTables { gfn: gfn.as_u64() })?;
        }
        Ok(cursor)
    }

    /// Locks the lowest table that exists for `gfn`, at `level` or above.
    pub(crate) fn cursor_on(&self, gfn: Gfn, level: Level) -> Cursor<'_, P> {
        self.cursor_by(gfn, level, Arena::lock)
    }

    /// As [`Table::cursor_on`], for who holds a frozen table of the level below.
    pub(crate) fn cursor_above_frozen(&self, gfn: Gfn, level: Level) -> Cursor<'_, P> {
        self.cursor_by(gfn, level, Arena::lock_above_frozen)
    }

    fn cursor_by(
        &self,
        gfn: Gfn,
        level: Level,
        lock: impl for<'a> Fn(&'a Arena, NodeNo) -> Held<'a, NodeState>,
    ) -> Cursor<'_, P> {
        loop {
            P::at(Step::L1);
            // L1. The guard ends here: the lock may be long in coming, and L3 knows the table again.
            let (node, at) = self.find(&self.enter(), gfn, level);
            P::at(Step::L2);
            // L2
            let cursor = Cursor { table: self, node, state: lock(&self.arena, node) };
            // L3
            if P::takes(Steps::L3_RECHECK_ATTACHED) && !cursor.is_still(gfn, at) {
                continue;
            }
            // From here on the lock keeps the table in the tree.
            let below = matches!(cursor.entry(gfn), Entry::Table(_) | Entry::Frozen(_));
            let grown = at > level && below;
            if !grown {
                return cursor;
            }
        }
    }

    /// A table page, locked, waiting for those that wait for their walkers.
    pub(super) fn alloc(&self, level: Level, base: Gfn) -> Option<Cursor<'_, P>> {
        (0..TRIES_FOR_A_TABLE).find_map(|_| {
            let made = self.arena.alloc(level, base);
            if made.is_none() {
                collect(&self.walkers);
                crate::sync::yield_now();
            }
            made.map(|(node, state)| Cursor { table: self, node, state })
        })
    }

    /// The lowest table for `gfn`, at `level` or above.
    fn find(&self, _guard: &Guard, gfn: Gfn, level: Level) -> (NodeNo, Level) {
        let mut found = (ROOT, Level::ROOT);
        while let (node, at) = found
            && at > level
        {
            // Acquire, with the release of `Cursor::publish`, as in `walk`.
            let raw = self.arena.word(node, at.index(gfn.as_u64())).load(Ordering::Acquire);
            match (decode(raw, at), at.below()) {
                // A frozen table is locked by who froze it: whoever locks it waits for what comes of it.
                (Entry::Table(child) | Entry::Frozen(child), Some(below)) => found = (child, below),
                _ => break,
            }
        }
        found
    }
}

impl<'t, P: Protocol> Cursor<'t, P> {
    /// The level of the table: its entries are leaves of this level, or tables of the one below.
    pub(crate) fn level(&self) -> Level {
        self.state.level
    }

    /// L3: whether it hangs in the tree, at `level`, in the way to `gfn`.
    fn is_still(&self, gfn: Gfn, level: Level) -> bool {
        P::at(Step::L3);
        self.state.attached && self.level() == level && self.range().contains(gfn)
    }

    /// The guest frames that the table spans.
    pub(crate) fn range(&self) -> GfnRange {
        self.state.range()
    }

    /// Whether no entry of the table is set.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.live == 0
    }

    /// Whether every entry of the table maps memory, or leads to a table.
    pub(crate) fn is_full(&self) -> bool {
        self.state.live == FANOUT as u32 && self.state.markers == 0
    }

    /// Whether any entry of the table maps memory.
    pub(crate) fn has_leaf(&self) -> bool {
        self.state.live > 0
            && self.entries_in(self.range()).any(|gfn| matches!(self.entry(gfn), Entry::Leaf(_)))
    }

    /// The entry for `gfn`.
    pub(crate) fn entry(&self, gfn: Gfn) -> Entry {
        // Words are only written under the lock that is held.
        decode(own_word(self.word(gfn)), self.level())
    }

    /// Where the pages of this page table prefer to lie.
    pub(crate) fn reservation(&self) -> Option<Reservation> {
        self.state.reservation
    }

    /// Sets where they do.
    pub(crate) fn set_reservation(&mut self, reservation: Reservation) {
        debug_assert!(self.level() == Level::PT && self.state.reservation.is_none());
        self.state.reservation = Some(reservation);
    }

    /// Maps the naturally aligned run at `gfn` to `leaf`.
    ///
    /// # Panics
    /// If something is mapped there: the caller looked under this lock.
    pub(crate) fn map(&mut self, gfn: Gfn, leaf: Leaf) -> Published<'_> {
        let frames = self.level().entry_frames();
        debug_assert!(gfn.offset_in(frames) == 0);
        match self.entry(gfn) {
            Entry::Absent => self.state.live += 1,
            Entry::Marker(marker) => {
                self.state.markers -= 1;
                self.table.resident.markers_gone(self.level(), marker, 1);
            }
            entry => panic!("guest frame {gfn} is mapped already: {entry:?}"),
        }
        self.publish(gfn, Entry::Leaf(leaf));
        self.table.resident.leaves_made(self.level(), leaf.source, 1);
        Published::new(Run { gfn, frame: leaf.frame, frames }, leaf.prot)
    }

    /// As [`Cursor::map`], without a look at what is there: what [`Steps::H3_RECHECK_HUGE`] rules out.
    pub(crate) fn map_blindly(&mut self, gfn: Gfn, leaf: Leaf) -> Published<'_> {
        self.state.live += 1;
        self.publish(gfn, Entry::Leaf(leaf));
        self.table.resident.leaves_made(self.level(), leaf.source, 1);
        let frames = self.level().entry_frames();
        Published::new(Run { gfn, frame: leaf.frame, frames }, leaf.prot)
    }

    /// Maps the pages of `run`, absent all of them, to its frames.
    pub(crate) fn map_run(&mut self, run: Run, prot: Prot, source: Source) -> Published<'_> {
        debug_assert!(self.level() == Level::PT);
        for i in 0..run.frames {
            let leaf = Leaf { frame: run.frame.add(i), prot, source };
            let _in_the_run = self.map(run.gfn.add(i), leaf);
        }
        Published::new(run, prot)
    }

    /// Takes the leaf at `gfn` out of every walker's sight, for as long as this lock is held: who holds it puts one
    /// back (X1, S1). An exchange, because a walker may be looking: it is a full barrier on x86, and one
    /// follows elsewhere.
    pub(crate) fn take_out(&mut self, gfn: Gfn) -> Zap<'_> {
        let Entry::Leaf(leaf) = self.entry(gfn) else { panic!("guest frame {gfn} has no leaf") };
        self.word(gfn).swap(Entry::Absent.encode(self.level()), Ordering::AcqRel);
        let frames = self.level().entry_frames();
        Zap::taken_out(Run { gfn: gfn.align_down(frames), frame: leaf.frame, frames })
    }

    /// Leaves the place empty from which `old` was taken out.
    pub(crate) fn leave_out(&mut self, gfn: Gfn, old: Leaf) {
        debug_assert!(self.entry(gfn) == Entry::Absent);
        self.state.live -= 1;
        self.table.resident.leaves_gone(self.level(), old.source, 1);
    }

    /// Puts `leaf` where `old` was taken out.
    pub(crate) fn put_back(&mut self, gfn: Gfn, old: Leaf, leaf: Leaf) -> Published<'_> {
        debug_assert!(self.entry(gfn) == Entry::Absent);
        // X6: who finds the leaf finds the mark gone.
        let order =
            if P::takes(Steps::X6_WRITE_BARRIER) { Ordering::Release } else { Ordering::Relaxed };
        self.word(gfn).store(Entry::Leaf(leaf).encode(self.level()), order);
        self.table.resident.leaves_gone(self.level(), old.source, 1);
        self.table.resident.leaves_made(self.level(), leaf.source, 1);
        let frames = self.level().entry_frames();
        let run = Run { gfn: gfn.align_down(frames), frame: leaf.frame, frames };
        Published::new(run, leaf.prot)
    }

    /// The translation that an entry holds already, to be installed (again).
    pub(crate) fn republish(&mut self, gfn: Gfn) -> Option<Published<'_>> {
        let Entry::Leaf(leaf) = self.entry(gfn) else { return None };
        let frames = self.level().entry_frames();
        let start = gfn.align_down(frames);
        Some(Published::new(Run { gfn: start, frame: leaf.frame, frames }, leaf.prot))
    }

    /// Marks the absent run at `gfn`; false when something is there.
    pub(crate) fn mark(&mut self, gfn: Gfn, marker: Marker) -> bool {
        if self.entry(gfn) != Entry::Absent {
            return false;
        }
        self.state.live += 1;
        self.state.markers += 1;
        self.publish(gfn, Entry::Marker(marker));
        self.table.resident.markers_made(self.level(), marker, 1);
        true
    }

    /// Takes the marker at `gfn` away, if it is this one: absent then. Neither is in the window, so nothing is owed.
    pub(crate) fn unmark(&mut self, gfn: Gfn, marker: Marker) -> bool {
        let marked = self.entry(gfn) == Entry::Marker(marker);
        if marked {
            self.clear(gfn, &mut FrameRuns::default());
        }
        marked
    }

    /// Whether every entry of the table is `marker`.
    pub(crate) fn is_all(&self, marker: Marker) -> bool {
        self.state.markers == FANOUT as u32
            && self.entries_in(self.range()).all(|gfn| self.entry(gfn) == Entry::Marker(marker))
    }

    /// Clears every leaf and marker of `range` in this table. Tables below stay.
    pub(crate) fn unmap(&mut self, range: GfnRange) -> Zap<'_> {
        let mut frames = FrameRuns::default();
        for gfn in self.entries_in(range) {
            self.clear(gfn, &mut frames);
        }
        Zap::unmapped(range, frames)
    }

    /// Marks every entry of `range` in this table returned but for guard and poisoned pages, and for tables; how many are
    /// that were not. A walker finds the leaf or the marker.
    pub(crate) fn give_back(&mut self, range: GfnRange) -> (Zap<'_>, u64) {
        let (mut frames, mut entries) = (FrameRuns::default(), 0);
        for gfn in self.entries_in(range) {
            match self.entry(gfn) {
                Entry::Absent => self.state.live += 1,
                Entry::Leaf(leaf) => {
                    frames.push_leaf(leaf, self.level().entry_frames());
                    self.table.resident.leaves_gone(self.level(), leaf.source, 1);
                }
                Entry::Marker(Marker::Missing) => {
                    self.state.markers -= 1;
                    self.table.resident.markers_gone(self.level(), Marker::Missing, 1);
                }
                Entry::Marker(_) | Entry::Table(_) | Entry::Frozen(_) => continue,
            }
            self.publish(gfn, Entry::Marker(Marker::Returned));
            self.state.markers += 1;
            entries += 1;
        }
        self.table.resident.markers_made(self.level(), Marker::Returned, entries);
        (Zap::unmapped(range, frames), entries)
    }

    /// Gives every leaf of `range` in this table the rights `prot`, or what is left of them where others use the frame
    /// too: whether one is the guest's alone, `exclusive` says.
    pub(crate) fn protect(
        &mut self,
        range: GfnRange,
        prot: Prot,
        exclusive: impl Fn(Leaf) -> bool,
    ) -> Zap<'_> {
        let (alone, together) = (prot.exclusive(), prot.shared());
        let mut left: Option<Prot> = None;
        let mut mixed = false;
        for gfn in self.entries_in(range) {
            if let Entry::Leaf(leaf) = self.entry(gfn) {
                let prot = if exclusive(leaf) { alone } else { together };
                mixed |= left.replace(prot).is_some_and(|other| other != prot);
                self.publish(gfn, Entry::Leaf(Leaf { prot, ..leaf }));
            }
        }
        match left {
            // A window is told one right for all. Dropped, each page comes back with its own.
            _ if mixed => Zap::unmapped(range, FrameRuns::default()),
            Some(left) => Zap::protected(range, left),
            None => Zap::protected(range, prot),
        }
    }

    pub(super) fn clear(&mut self, gfn: Gfn, frames: &mut FrameRuns) {
        match self.entry(gfn) {
            Entry::Absent | Entry::Table(_) | Entry::Frozen(_) => return,
            Entry::Leaf(leaf) => {
                frames.push_leaf(leaf, self.level().entry_frames());
                self.table.resident.leaves_gone(self.level(), leaf.source, 1);
            }
            Entry::Marker(marker) => {
                self.state.markers -= 1;
                self.table.resident.markers_gone(self.level(), marker, 1);
            }
        }
        self.publish(gfn, Entry::Absent);
        self.state.live -= 1;
    }

    pub(super) fn publish(&self, gfn: Gfn, entry: Entry) {
        // L4. Release, with the acquire of `walk` and `find`: what lies behind the entry is complete.
        self.word(gfn).store(entry.encode(self.level()), Ordering::Release);
    }

    fn word(&self, gfn: Gfn) -> &AtomicU64 {
        debug_assert!(self.range().contains(gfn));
        self.table.arena.word(self.node, self.level().index(gfn.as_u64()))
    }

    /// The first guest frame of each entry of this table that lies in `range`.
    pub(super) fn entries_in(&self, range: GfnRange) -> impl Iterator<Item = Gfn> + use<P> {
        let step = self.level().entry_frames();
        let part = self.range().intersection(range);
        part.into_iter().flat_map(move |part| part.chunks(step)).map(GfnRange::start)
    }
}
