//! Memory that the guest gives back: a balloon's pages, and free pages that it reports.
//!
//! The steps are Z1 to Z5 of `continue-vs-zap` ([`crate::fault`]). What unmapping leaves absent is marked here, so that
//! nobody fills it but the guest that touches it, and what becomes free goes on to the host. A block of which every page
//! is marked is one entry.
//!
//! The host is asked at the end and without a lock. Until then the frames are nobody's: out of the table and the window,
//! and still in use by the pool's books.

use crate::addr::GfnRange;
use crate::entry::{Entry, Marker};
use crate::geometry::{FRAME_BYTES, Level};
use crate::mirror::MirrorError;
use crate::protocol::{Protocol, Step};
use crate::space::{AddressSpace, CutsPage, count};
use crate::table::OutOfTables;
use crate::table::cursor::Ended;
use crate::table::zap::Unreachable;

use super::{end, prune};

/// What was given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GivenBack {
    /// Pages that are marked now and were not before: those that the guest had, and those that it had not touched.
    pub pages: u64,
    /// Bytes whose memory went back to the host.
    pub returned_bytes: u64,
    /// Pages that a device has pinned. Their frames are free when it lets go, and their memory stays with the pool.
    pub pinned: u64,
    /// Pages whose frame others use too, and keep. Pages of an image are not counted.
    pub shared: u64,
}

/// Why memory could not be given back. Blocks before the one that failed are.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GiveBackError {
    /// It is not RAM.
    #[error("{0} cannot be given back: it is not RAM")]
    NotRam(GfnRange),
    /// It shows an image for good: nothing of it is the guest's.
    #[error("{0} cannot be given back: it shows a shared image")]
    SharedImage(GfnRange),
    /// It cuts through a page of the pool.
    #[error(transparent)]
    CutsPage(#[from] CutsPage),
    /// There is no table page for the entries.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// The window may still hold it, so the frames stay in use.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Why memory could not be taken back. Blocks before the one that failed are.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TakeBackError {
    /// It is not RAM.
    #[error("{0} cannot be taken back: it is not RAM")]
    NotRam(GfnRange),
    /// It cuts through a page of the pool.
    #[error(transparent)]
    CutsPage(#[from] CutsPage),
    /// There is no table page for the rest of a block.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// A page table that was no longer needed could not be freed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Takes `range` away from the guest, at its own wish, and marks it returned.
pub(crate) fn give_back<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
) -> Result<GivenBack, GiveBackError> {
    let result = try_give_back(space, range);
    let counters = &space.counters;
    match &result {
        Ok(given) => {
            count(&counters.given_back, given.pages);
            count(&counters.returned_bytes, given.returned_bytes);
        }
        Err(_) => count(&counters.give_back_refused, 1),
    }
    result
}

fn try_give_back<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
) -> Result<GivenBack, GiveBackError> {
    if !space.is_ram(range) {
        return Err(GiveBackError::NotRam(range));
    }
    if space.shares_image(range.start()) {
        return Err(GiveBackError::SharedImage(range));
    }
    space.check_granule(range)?;
    space.forget_merged(range);
    let mut gone = Gone { pages: 0, frames: Unreachable::default(), ended: Ended::new() };
    let mut parts = range.chunks(Level::PD.entry_frames());
    let result = parts.try_for_each(|part| give_back_in_block(space, part, &mut gone));
    // Z5, of what came out before a failure too.
    P::at(Step::Z5);
    let given = gone.release(space);
    // V2: what was missing is not waited for.
    space.arrived(range);
    space.note_lost(range);
    result.map(|()| given)
}

/// What the table has lost, and the window with it.
struct Gone {
    pages: u64,
    frames: Unreachable,
    /// Reservations of page tables all of whose pages were given back.
    ended: Ended,
}

impl Gone {
    /// Z5.
    fn release<P: Protocol>(mut self, space: &AddressSpace<P>) -> GivenBack {
        for &reservation in &self.ended {
            self.frames.join_unused(space.pool.claim_rest(reservation));
        }
        // First, so that a block of which nothing is left in use is freed in one piece.
        end(space, self.ended);
        let to_host = self.frames.release_to_host(&space.pool);
        GivenBack {
            pages: self.pages,
            returned_bytes: to_host.returned * FRAME_BYTES,
            pinned: to_host.pinned,
            shared: to_host.shared,
        }
    }
}

/// Z1 to Z4 for `part`, of one block.
fn give_back_in_block<P: Protocol>(
    space: &AddressSpace<P>,
    part: GfnRange,
    gone: &mut Gone,
) -> Result<(), GiveBackError> {
    let gfn = part.start();
    let whole = part.frames() == Level::PD.entry_frames();
    loop {
        P::at(Step::Z1);
        let mut cursor = space.table.cursor_at(gfn, Level::PD)?;
        let whole = whole && cursor.level() == Level::PD;
        match cursor.entry(gfn) {
            Entry::Marker(Marker::Returned | Marker::Guard | Marker::Poison) => return Ok(()),
            Entry::Absent if whole => {
                // An absent page is not in the window, so nothing is owed.
                cursor.mark(gfn, Marker::Returned);
                gone.pages += part.frames();
                return Ok(());
            }
            Entry::Leaf(_) | Entry::Marker(_) if whole => {
                P::at(Step::Z2);
                let (zap, entries) = cursor.give_back(part);
                P::at(Step::Z3);
                gone.frames.join(zap.flush(&*space.mirror)?);
                gone.pages += entries * part.frames();
                return Ok(());
            }
            Entry::Leaf(_) | Entry::Marker(_) => {
                cursor.split(gfn, |frame| space.pool.adopt(frame.block()))?;
            }
            Entry::Frozen(_) => {
                // A collapse holds the page table's lock, and needs this one to end.
                drop(cursor);
                drop(space.table.cursor_on(gfn, Level::PT));
            }
            Entry::Absent | Entry::Table(_) => {
                drop(cursor);
                let mut cursor = space.table.cursor_at(gfn, Level::PT)?;
                if cursor.level() != Level::PT {
                    continue;
                }
                P::at(Step::Z2);
                let (zap, entries) = cursor.give_back(part);
                P::at(Step::Z3);
                gone.frames.join(zap.flush(&*space.mirror)?);
                gone.pages += entries;
                let all = cursor.is_all(Marker::Returned);
                drop(cursor);
                if all {
                    let mut parent = space.table.cursor_on(gfn, Level::PD);
                    gone.ended.extend(parent.fold(gfn, Marker::Returned).into_iter().flatten());
                }
                return Ok(());
            }
        }
    }
}

/// Takes the marks of `give_back` off `range`; how many pages had one. They are absent then, and what fills absent pages
/// fills them too.
pub(crate) fn take_back<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
) -> Result<u64, TakeBackError> {
    if !space.is_ram(range) {
        return Err(TakeBackError::NotRam(range));
    }
    space.check_granule(range)?;
    let mut pages = 0;
    let result = range
        .chunks(Level::PD.entry_frames())
        .try_for_each(|part| take_back_in_block(space, part).map(|taken| pages += taken));
    count(&space.counters.taken_back, pages);
    // Over an image it reads as that again.
    space.note_lost(range);
    result.map(|()| pages)
}

fn take_back_in_block<P: Protocol>(
    space: &AddressSpace<P>,
    part: GfnRange,
) -> Result<u64, TakeBackError> {
    let gfn = part.start();
    loop {
        let mut cursor = space.table.cursor_on(gfn, Level::PT);
        if cursor.level() > Level::PT {
            if cursor.entry(gfn) != Entry::Marker(Marker::Returned) {
                return Ok(0);
            }
            if part.frames() == cursor.level().entry_frames() {
                cursor.unmark(gfn, Marker::Returned);
                return Ok(part.frames());
            }
            cursor.split(gfn, |_| None)?;
            continue;
        }
        let taken = part.iter().filter(|&gfn| cursor.unmark(gfn, Marker::Returned)).count() as u64;
        let emptied = taken > 0 && cursor.is_empty();
        drop(cursor);
        if emptied {
            prune(space, part)?;
        }
        return Ok(taken);
    }
}
