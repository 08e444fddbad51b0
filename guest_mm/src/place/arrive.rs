//! Pages that arrive many at once.
//!
//! Before the guest runs here, its pages may come again and again, each time as they are by then ([`Onto::Resting`]). Once it
//! runs, a page that is sent twice (asked for, and on its way already) must not be placed twice: the guest may have made it all zeroes
//! meanwhile and lost it to a scanner, or given it back. So what arrives then fills entries that are marked missing, and nothing
//! else ([`Onto::Missing`]). Who waits for a page that is not missing any more is let go all the same.
//!
//! Over an image nothing is missing: a page that the guest has not touched is absent, and reads as the image's. A copy may take
//! its place before the guest stores to it ([`Onto::Untouched`]); that is K4 of `huge-vs-small-fault`, without a fault.

use std::ops::AddAssign;

use crate::addr::{FrameNo, Gfn, GfnRange, Gpa};
use crate::entry::{Entry, Marker, Source};
use crate::fault::{FaultError, frame_to_fill, unshare};
use crate::geometry::Level;
use crate::mirror::{MirrorError, Run};
use crate::prot::{Access, Prot};
use crate::protocol::{Protocol, Step};
use crate::space::{AddressSpace, Over, RamRegion, Sharing, count};
use crate::table::cursor::Cursor;

use super::{Parcel, PlaceError, Placed, complete};

/// A page of bytes.
#[cfg(not(loom))]
pub type Page = [u8; crate::geometry::FRAME_BYTES as usize];
/// A model's word.
#[cfg(loom)]
pub type Page = u64;

/// What a page holds that arrives.
#[derive(Debug)]
pub enum Arriving<'a> {
    /// These bytes.
    Bytes(&'a Page),
    /// What was filled before: the frame becomes the guest's.
    Frame(Parcel),
    /// Zeroes, and somebody waits: the page is there at once.
    Zero,
    /// Zeroes, and nobody is known to wait: the page's first touch fills it.
    Nothing,
}

/// What pages arrive at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Onto {
    /// A guest that runs: only what is marked missing is filled.
    Missing,
    /// A guest that nobody runs yet: what arrives takes the place of what was there.
    Resting,
    /// A guest that runs over an image: pages that it has not touched yet become copies of it, as a store would have made them. What
    /// arrives is what the image holds.
    Untouched,
}

impl Onto {
    /// Whether a page may be mapped in the place of `entry`.
    pub(super) fn fills(self, entry: Entry) -> bool {
        match entry {
            Entry::Marker(Marker::Missing) => true,
            Entry::Absent => self != Onto::Missing,
            Entry::Marker(Marker::Returned) => self == Onto::Resting,
            _ => false,
        }
    }

    /// Whether `region` may have pages of its own beside those of an image, where they come from there.
    pub(super) fn check(self, region: &RamRegion, gpa: Gpa) -> Result<(), FaultError> {
        let private = |over: &Over| over.sharing == Sharing::Private;
        match self {
            Onto::Untouched if !region.over.as_ref().is_some_and(private) => {
                Err(FaultError::ReadOnly { gpa })
            }
            _ => Ok(()),
        }
    }
}

/// What became of pages that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Arrived {
    /// Pages that are as they came.
    pub pages: u64,
    /// Pages that were there already, and stay as they are.
    pub duplicates: u64,
    /// Whether their block is mapped huge now.
    pub huge: bool,
}

impl AddAssign for Arrived {
    fn add_assign(&mut self, more: Arrived) {
        self.pages += more.pages;
        self.duplicates += more.duplicates;
        self.huge |= more.huge;
    }
}

/// Fills the pages from `first` on, all in one block, as `onto` has it, and lets those go on that wait for one of them. Pages
/// that lie in order go into the window in one call.
pub(crate) fn arrive<'a, P: Protocol>(
    space: &AddressSpace<P>,
    first: Gfn,
    onto: Onto,
    pages: impl ExactSizeIterator<Item = Arriving<'a>>,
) -> Result<Arrived, PlaceError> {
    let mut arrived = Arrived::default();
    let Ok(range) = GfnRange::new(first, pages.len() as u64) else { return Ok(arrived) };
    let access = Access::Write;
    let not_ram = FaultError::NotRam { gpa: first.gpa(), access };
    let whole = |region: &&RamRegion| region.range.covers(range);
    let region = space.region(first).filter(whole).ok_or(not_ram)?;
    onto.check(region, first.gpa())?;
    space.check_granule(range)?;
    // A1
    P::at(Step::A1);
    let Some(mut cursor) = page_table(space, first, onto)? else {
        // A leaf or a marker spans all of it.
        if onto == Onto::Resting {
            return rewrite(space, range.iter().zip(pages));
        }
        arrived.duplicates = range.frames();
        if onto == Onto::Missing {
            wake(space, range)?;
        }
        return Ok(arrived);
    };
    let mut there_already = Vec::new();
    let mut run: Option<Run> = None;
    let mut result = Ok(());
    // A2
    P::at(Step::A2);
    for (gfn, page) in range.iter().zip(pages) {
        let entry = cursor.entry(gfn);
        if !onto.fills(entry) {
            if onto == Onto::Resting {
                there_already.push((gfn, page));
                continue;
            }
            arrived.duplicates += 1;
            // Who waits for it has a fault of its own, which is served.
            if onto == Onto::Untouched {
                continue;
            }
            // Frames that were filled are still to be mapped: no way out before that.
            let let_go = match cursor.republish(gfn) {
                Some(there) => there.install(&*space.mirror),
                None => space.mirror.zap(GfnRange::entry(gfn, Level::PT)),
            };
            result = result.and(let_go.map_err(PlaceError::from));
            continue;
        }
        // What lies over an image would show that.
        if matches!(page, Arriving::Nothing) && region.over.is_none() {
            cursor.unmark(gfn, Marker::Missing);
            cursor.unmark(gfn, Marker::Returned);
            arrived.pages += 1;
            continue;
        }
        let frame = match fill(space, region, &mut cursor, gfn, onto, page) {
            Ok(frame) => frame,
            Err(error) => {
                result = Err(error);
                break;
            }
        };
        arrived.pages += 1;
        if let Some(run) = &mut run
            && run.gfn.add(run.frames) == gfn
            && run.frame.add(run.frames) == frame
        {
            run.frames += 1;
            continue;
        }
        if let Some(done) = run.replace(Run { gfn, frame, frames: 1 }) {
            result = result.and(show(space, &mut cursor, done));
        }
    }
    let filled = run.map(|run| run.frame);
    if let Some(done) = run {
        result = result.and(show(space, &mut cursor, done));
    }
    count(&space.counters.placed, arrived.pages);
    let (full, block) = (cursor.is_full(), cursor.range());
    drop(cursor);
    // V2
    space.arrived(range);
    result?;
    arrived.pages += rewrite(space, there_already.into_iter())?.pages;
    if let Some(frame) = filled.filter(|_| full) {
        arrived.huge = complete(space, block, frame)? == Placed::Completed;
    }
    Ok(arrived)
}

/// The page table of `gfn`, locked, made where a page can be mapped; none where something else spans the block.
pub(super) fn page_table<P: Protocol>(
    space: &AddressSpace<P>,
    gfn: Gfn,
    onto: Onto,
) -> Result<Option<Cursor<'_, P>>, FaultError> {
    loop {
        let mut cursor = match onto {
            Onto::Missing => space.table.cursor_on(gfn, Level::PT),
            Onto::Resting | Onto::Untouched => space.table.cursor_at(gfn, Level::PT)?,
        };
        if cursor.level() == Level::PT {
            return Ok(Some(cursor));
        }
        match cursor.entry(gfn) {
            // Somebody has just hung a table there.
            Entry::Table(_) | Entry::Frozen(_) => {}
            entry @ Entry::Marker(_) if onto.fills(entry) => cursor.split(gfn, |_| None)?,
            Entry::Absent | Entry::Leaf(_) | Entry::Marker(_) => return Ok(None),
        }
    }
}

/// Writes what arrives to pages that are there already. Nobody runs the guest.
fn rewrite<'a, P: Protocol>(
    space: &AddressSpace<P>,
    pages: impl Iterator<Item = (Gfn, Arriving<'a>)>,
) -> Result<Arrived, PlaceError> {
    let mut arrived = Arrived::default();
    for (gfn, page) in pages {
        let gpa = gfn.gpa();
        // A copy of its own, where others use the page, too.
        unshare(space, gpa)?;
        let cursor = space.table.cursor_on(gfn, Level::PT);
        let Entry::Leaf(leaf) = cursor.entry(gfn) else {
            // A guard page keeps what comes away, and what is absent is zeroes.
            arrived.duplicates += 1;
            continue;
        };
        let frame = leaf.frame.add(gfn.offset_in(cursor.level().entry_frames()));
        write(space, frame, page);
        arrived.pages += 1;
    }
    Ok(arrived)
}

/// Lets those go on that wait in `range`, whatever is there now: they ask again.
pub(crate) fn wake<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
) -> Result<(), MirrorError> {
    // V2
    space.arrived(range);
    for part in range.chunks(Level::PD.entry_frames()) {
        let mut cursor = space.table.cursor_on(part.start(), Level::PT);
        if cursor.level() > Level::PT {
            match cursor.republish(part.start()) {
                Some(there) => there.install(&*space.mirror)?,
                None => space.mirror.zap(part)?,
            }
            continue;
        }
        for gfn in part.iter() {
            match cursor.entry(gfn) {
                Entry::Leaf(_) => {}
                _ => space.mirror.zap(GfnRange::entry(gfn, Level::PT))?,
            }
        }
    }
    Ok(())
}

/// A frame with the bytes of `page`, for the missing page at `gfn`.
fn fill<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: &mut Cursor<'_, P>,
    gfn: Gfn,
    onto: Onto,
    page: Arriving<'_>,
) -> Result<FrameNo, PlaceError> {
    if let Arriving::Frame(parcel) = page {
        return parcel.open(&space.pool).ok_or(PlaceError::OtherService { gpa: gfn.gpa() });
    }
    // Where the window points already: elsewhere, each page would be a mapping of its own.
    let over = region.over.as_ref().filter(|_| onto == Onto::Untouched);
    let frame = match over.and_then(|over| over.image.lend(over.page(region, gfn))) {
        Some(frame) => frame,
        None => frame_to_fill(space, region, cursor, gfn, Access::Write)?,
    };
    write(space, frame, page);
    Ok(frame)
}

fn write<P: Protocol>(space: &AddressSpace<P>, frame: FrameNo, page: Arriving<'_>) {
    match page {
        #[cfg(not(loom))]
        Arriving::Bytes(bytes) => space.pool.memory().write(frame, 0, bytes),
        #[cfg(loom)]
        Arriving::Bytes(&word) => space.pool.memory().write(frame, word),
        Arriving::Frame(parcel) => space.pool.memory().copy(parcel.frame(), frame),
        Arriving::Zero | Arriving::Nothing => space.pool.memory().zero(frame, 1),
    }
}

/// A3 and A4, for pages that lie in order.
fn show<P: Protocol>(
    space: &AddressSpace<P>,
    cursor: &mut Cursor<'_, P>,
    run: Run,
) -> Result<(), PlaceError> {
    P::at(Step::A3);
    let published = cursor.map_run(run, Prot::RAM, Source::Guest);
    P::at(Step::A4);
    Ok(published.install(&*space.mirror)?)
}
