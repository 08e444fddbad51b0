//! Who looks at the pages, and decides.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc as Shared, Weak};

use crate::addr::{FrameNo, Gfn, GfnRange, PageSize};
use crate::entry::{Entry, Source};
use crate::geometry::Level;
use crate::pool::Pool;
use crate::protocol::Protocol;
use crate::share::{self, MergeError};
use crate::space::AddressSpace;
use crate::split;
use crate::sync::Arc;

use super::checksum::{ByChecksum, Checksum};
use super::notes::{Note, Notes, PageNo};
use super::shelf::Shelf;
use super::stats::DedupStats;
use super::{DedupPolicy, Splitting};

/// Entries of tables that one step looks at: who waits for a step waits for some tens of microseconds, or a millisecond
/// where all of its pages are merged.
const STEP: u32 = 64;

/// Which of a service's guests, in the order in which they came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct GuestNo(u32);

/// A page of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    guest: GuestNo,
    page: PageNo,
}

const START: Place = Place { guest: GuestNo(0), page: PageNo(0) };

/// What it knows.
#[derive(Debug)]
pub(crate) struct Scanner<P: Protocol> {
    pool: Arc<Pool>,
    guests: BTreeMap<GuestNo, Tracked<P>>,
    next_guest: u32,
    /// D4: shared pages, by checksum.
    stable: Shelf,
    /// D5: exclusive pages of this round, by checksum.
    seen: ByChecksum<Place>,
    zeroes: Checksum,
    /// The next page.
    at: Place,
    /// Mappings that the merged pages of all guests may cost together.
    most_merged: u32,
    /// What is counted as it happens; the rest is filled in by [`Scanner::stats`].
    counts: DedupStats,
}

/// A guest, for as long as it is there.
#[derive(Debug)]
struct Tracked<P: Protocol> {
    space: Weak<AddressSpace<P>>,
    notes: Notes,
    /// Pages that are merged now, or were in the last round.
    merged: u32,
    /// Those that were found merged in this round.
    found: u32,
}

/// What one step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    /// Pages looked at.
    pub(super) looked: u32,
    /// Whether it was the last one of a round.
    pub(super) ends_round: bool,
}

/// A page under the eyes of the scanner.
struct Page<'a, P: Protocol> {
    space: &'a AddressSpace<P>,
    place: Place,
    gfn: Gfn,
    frame: FrameNo,
}

impl<P: Protocol> Scanner<P> {
    /// One that knows no guest.
    pub(crate) fn new(pool: &Arc<Pool>) -> Scanner<P> {
        Scanner {
            pool: Arc::clone(pool),
            guests: BTreeMap::new(),
            next_guest: 0,
            stable: Shelf::new(Arc::clone(pool)),
            seen: ByChecksum::default(),
            zeroes: Checksum::of_zeroes(),
            at: START,
            most_merged: mappings() / 3,
            counts: DedupStats::default(),
        }
    }

    /// Looks at the pages of `space`, too, until it leaves.
    pub(crate) fn join(&mut self, space: &Shared<AddressSpace<P>>) {
        let (space, notes) = (Shared::downgrade(space), Notes::new(space.ram_frames()));
        let tracked = Tracked { space, notes, merged: 0, found: 0 };
        self.guests.insert(GuestNo(self.next_guest), tracked);
        self.next_guest += 1;
    }

    /// From now on nothing is done to `space`.
    pub(crate) fn leave(&mut self, space: &Shared<AddressSpace<P>>) {
        self.guests.retain(|_, tracked| tracked.space.as_ptr() != Shared::as_ptr(space));
    }

    /// Gives back what nobody else keeps.
    pub(crate) fn prune(&mut self) {
        self.stable.prune();
    }

    /// Gives back all that it keeps, and begins anew. What is merged stays so.
    pub(crate) fn forget(&mut self) {
        self.stable.clear();
        self.seen = ByChecksum::default();
        self.at = START;
    }

    /// The frames that it keeps, for audits.
    pub(crate) fn kept(&self) -> HashMap<FrameNo, u32> {
        self.stable.kept().map(|frame| (frame, 1)).collect()
    }

    /// What it did, and what is shared now.
    pub(crate) fn stats(&self) -> DedupStats {
        let saved = self.stable.saved();
        DedupStats { shared_frames: saved.frames, saved_pages: saved.pages, ..self.counts }
    }

    /// Bytes that it remembers of `space`: none before it has ever looked.
    pub(crate) fn metadata_bytes(&self, space: &Shared<AddressSpace<P>>) -> u64 {
        if self.counts.rounds == 0 && !self.is_under_way() {
            return 0;
        }
        let mut guests = self.guests.values();
        let guest = guests.find(|tracked| tracked.space.as_ptr() == Shared::as_ptr(space));
        guest.map_or(0, |tracked| tracked.notes.bytes())
    }

    pub(super) fn rounds(&self) -> u64 {
        self.counts.rounds
    }

    /// Whether a round has begun and is not over.
    pub(super) fn is_under_way(&self) -> bool {
        self.at != START
    }

    /// Looks at the next pages.
    pub(super) fn step(&mut self, policy: DedupPolicy) -> Step {
        let before = self.counts.scanned;
        let ends_round = match self.guests.range(self.at.guest..).next() {
            // A pool whose pages are larger cannot share 4 KiB of them.
            Some((&guest, tracked)) if self.pool.granule() == PageSize::Size4K => {
                let space = tracked.space.upgrade();
                if guest != self.at.guest {
                    self.at = Place { guest, page: PageNo(0) };
                }
                match space {
                    Some(space) => self.go_on(&space, policy),
                    None => drop(self.guests.remove(&guest)),
                }
                false
            }
            _ => {
                self.end_round();
                true
            }
        };
        Step { looked: (self.counts.scanned - before) as u32, ends_round }
    }

    fn end_round(&mut self) {
        self.counts.rounds += 1;
        self.seen.clear();
        self.stable.prune();
        self.at = START;
    }

    /// Looks at some pages of `space`.
    fn go_on(&mut self, space: &AddressSpace<P>, policy: DedupPolicy) {
        for _ in 0..STEP {
            let Some(rest) = rest_of_region(space, self.at.page) else {
                if let Some(tracked) = self.guests.get_mut(&self.at.guest) {
                    tracked.merged = std::mem::take(&mut tracked.found);
                }
                self.at = Place { guest: GuestNo(self.at.guest.0 + 1), page: PageNo(0) };
                return;
            };
            let pages = self.look(space, rest.start(), policy).min(rest.frames());
            self.at.page.0 += pages as u32;
        }
    }

    /// Looks at what is mapped at `gfn`; after how many pages something else may be.
    fn look(&mut self, space: &AddressSpace<P>, gfn: Gfn, policy: DedupPolicy) -> u64 {
        let walked = space.table.walk(&space.table.enter(), gfn);
        let span = walked.level.entry_frames();
        let rest = span - gfn.offset_in(span);
        let leaf = match walked.entry {
            Entry::Leaf(leaf) if leaf.source == Source::Guest => leaf,
            _ => return rest,
        };
        if walked.level > Level::PT && policy.splitting == Splitting::Never {
            self.counts.huge += rest.div_ceil(PageSize::Size2M.frames());
            return rest;
        }
        let frame = leaf.frame.add(gfn.offset_in(span));
        self.look_at(&Page { space, place: self.at, gfn, frame }, policy);
        1
    }

    fn look_at(&mut self, page: &Page<'_, P>, policy: DedupPolicy) {
        self.counts.scanned += 1;
        let frames = self.pool.frames();
        if !frames.is_exclusive(page.frame) {
            self.meet_shared(page);
            return;
        }
        if frames.is_pinned(page.frame) {
            self.counts.pinned += 1;
            return;
        }
        // D1
        let sum = Checksum::of(&self.pool, page.frame);
        // D2
        let Some(tracked) = self.guests.get_mut(&page.place.guest) else { return };
        let before = tracked.notes.set_sum(page.place.page, sum);
        if !Notes::is(before, sum) {
            self.counts.volatile += u64::from(before != Note::Unseen);
            return;
        }
        if let Err(why) = self.settle(page, sum, policy) {
            match why {
                MergeError::Pinned => self.counts.pinned += 1,
                MergeError::Mirror(_) => self.counts.failed += 1,
                // It is another page, or another's, by now.
                _ => self.counts.differing += 1,
            }
        }
    }

    /// A page that others may use too: counted against the budget, and known for the next one like it.
    fn meet_shared(&mut self, page: &Page<'_, P>) {
        let Some(tracked) = self.guests.get_mut(&page.place.guest) else { return };
        if tracked.notes.get(page.place.page) == Note::Merged {
            tracked.found += 1;
        }
        if !self.stable.has(page.frame)
            && let Some(frame) = share::shared_frame(page.space, page.gfn)
        {
            self.stable.keep(Checksum::of(&self.pool, frame), frame);
        }
    }

    /// D3 to D6.
    fn settle(
        &mut self,
        page: &Page<'_, P>,
        sum: Checksum,
        policy: DedupPolicy,
    ) -> Result<(), MergeError> {
        // D3
        if sum == self.zeroes && page.space.region(page.gfn).is_some_and(|it| it.over.is_none()) {
            self.make_small(page)?;
            match share::drop_zeroes(page.space, page.gfn) {
                Ok(()) => {
                    self.counts.zeroes += 1;
                    return Ok(());
                }
                // It can be shared, and keep its note.
                Err(MergeError::Dirty) => {}
                Err(error) => return Err(error),
            }
        }
        let stable = self.stable.find(sum);
        let first = match stable {
            Some(_) => None,
            None => match self.seen.get(&sum) {
                Some(&first) if first != page.place => Some(first),
                _ => {
                    // D6
                    self.seen.insert(sum, page.place);
                    return Ok(());
                }
            },
        };
        if !self.may_merge(page.place.guest, policy) {
            self.counts.over_budget += 1;
            return Ok(());
        }
        let shared = match (stable, first) {
            (Some(frame), _) => frame,
            (None, Some(first)) => match self.share_first(first, page, sum)? {
                Some(frame) => frame,
                None => return Ok(()),
            },
            (None, None) => return Ok(()),
        };
        self.make_small(page)?;
        share::replace(page.space, page.gfn, shared)?;
        self.counts.merged += 1;
        if let Some(tracked) = self.guests.get_mut(&page.place.guest) {
            tracked.notes.set_merged(page.place.page);
            tracked.merged += 1;
            tracked.found += 1;
        }
        Ok(())
    }

    /// D5: makes `first` a page that can be shared, if it still is as `page` is; else `page` takes its place among
    /// those that were seen.
    fn share_first(
        &mut self,
        first: Place,
        page: &Page<'_, P>,
        sum: Checksum,
    ) -> Result<Option<FrameNo>, MergeError> {
        let space = self.guests.get(&first.guest).and_then(|tracked| tracked.space.upgrade());
        let found = space.as_ref().and_then(|space| {
            let gfn = rest_of_region(space, first.page)?.start();
            Some(Page { space, place: first, gfn, frame: own_frame(space, gfn)? })
        });
        // A look without the guest kept out: it costs the first page's guest nothing if they differ.
        let same = |other: &Page<'_, P>| self.pool.memory().is_same(other.frame, page.frame);
        let Some(other) = found.filter(same) else {
            self.seen.insert(sum, page.place);
            self.counts.differing += 1;
            return Ok(None);
        };
        let made =
            self.make_small(&other).and_then(|()| share::make_shared(other.space, other.gfn));
        match made {
            Ok(frame) => {
                self.seen.remove(&sum);
                // Its guest may have written to it before it was shared. Now nobody does.
                let now = Checksum::of(&self.pool, frame);
                self.stable.keep(now, frame);
                Ok((now == sum).then_some(frame))
            }
            Err(error) => {
                self.seen.insert(sum, page.place);
                Err(error)
            }
        }
    }

    /// Splits the huge leaf that `page` is in, if it is in one.
    fn make_small(&self, page: &Page<'_, P>) -> Result<(), MergeError> {
        let block = GfnRange::entry(page.gfn, Level::PD);
        let region = page.space.region(page.gfn);
        let Some(part) = region.and_then(|region| region.range.intersection(block)) else {
            return Err(MergeError::NotOwn);
        };
        // There is a table page for every block that a split makes small, or there is none to be had: then it stays huge.
        split::split(page.space, part, PageSize::Size4K).map_err(|_| MergeError::NotOwn)?;
        Ok(())
    }

    /// Whether a further page of `guest` may be merged: each may cost two mappings of the process.
    fn may_merge(&self, guest: GuestNo, policy: DedupPolicy) -> bool {
        let own = self.guests.get(&guest).map_or(0, |tracked| tracked.merged);
        let all: u32 = self.guests.values().map(|tracked| tracked.merged).sum();
        own < policy.max_merged && all < self.most_merged
    }
}

/// From `page` of the guest's RAM to the end of its region; none behind the last.
fn rest_of_region<P: Protocol>(space: &AddressSpace<P>, page: PageNo) -> Option<GfnRange> {
    let mut before = 0;
    space.ram.iter().find_map(|region| {
        let offset = u64::from(page.0) - before;
        let pages = region.range.frames();
        if offset < pages {
            return GfnRange::new(region.range.start().add(offset), pages - offset).ok();
        }
        before += pages;
        None
    })
}

/// The exclusive frame at `gfn`, as it is at the moment.
fn own_frame<P: Protocol>(space: &AddressSpace<P>, gfn: Gfn) -> Option<FrameNo> {
    let walked = space.table.walk(&space.table.enter(), gfn);
    match walked.entry {
        Entry::Leaf(leaf) if leaf.source == Source::Guest => {
            let frame = leaf.frame.add(gfn.offset_in(walked.level.entry_frames()));
            space.pool.frames().is_exclusive(frame).then_some(frame)
        }
        _ => None,
    }
}

/// How many mappings the kernel allows a process.
fn mappings() -> u32 {
    let told = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    told.and_then(|text| text.trim().parse().ok()).unwrap_or(65530)
}
