//! RAM over an image: reads map the image's pages, stores get copies.
//!
//! ```text
//! huge-vs-small-fault     a read, which may map 2 MiB             a store, which must map 4 KiB
//!                         H1 walk: nothing in the block           K1 walk: no huge leaf in the way
//!                         H2 lock the page directory              K2 lock the page table, made if need be
//!                         H3 still nothing? else H1 again         K3 still no huge leaf? else K1 again,
//!                                                                    which splits it
//!                         H4 the PDE becomes the image's block    K4 copy the page, the PTE becomes the copy
//!
//! Invariant   a huge leaf and a page table are never at one place: whoever comes second finds out under the lock
//!             of the directory.
//! Tolerated   pages that were loaded, or read from the image's file, for a fault that then takes the other way.
//! Origin      Linux e2093926a098: DAX faults of both sizes checked, and then installed, each without a look at
//!             what the other had done.
//! Variants    `HugeWithoutRecheck` skips H3: a leaf goes over a page table, which is lost with all pages in it.
//!             `SmallWithoutRecheck` skips K3: a page table goes over the leaf. Counters tell both at teardown.
//! ```
//!
//! Pages are loaded before a lock is taken: that is the file system's time. Where no other guest lies over the image, a page that
//! is stored to before it was loaded is read to the frame that it becomes: nothing is left to copy at K4.

use crate::addr::{FrameNo, Gfn, GfnRange, Gpa, PageSize};
use crate::entry::{Entry, Leaf, Marker, Source};
use crate::geometry::Level;
use crate::image::LoadError;
use crate::mirror::{MirrorError, Run};
use crate::pool::OwnRun;
use crate::prot::{Access, Prot};
use crate::protocol::{Protocol, Step, Steps};
use crate::space::{AddressSpace, Over, RamRegion, Sharing, count};
use crate::table::cursor::Cursor;

use super::own::{frame_for_copy, own};
use super::{FaultError, Filled, walk};

fn failed(gpa: Gpa, access: Access) -> impl Fn(LoadError) -> FaultError {
    move |cause| match cause {
        LoadError::Exhausted(cause) => FaultError::Exhausted { gpa, access, cause },
        #[cfg(not(loom))]
        cause => FaultError::Image { gpa, access, cause },
    }
}

/// Serves a read at `gpa`.
pub(super) fn serve_read<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    over: &Over,
    gpa: Gpa,
) -> Result<Filled, FaultError> {
    let gfn = gpa.gfn();
    loop {
        // H1
        P::at(Step::H1);
        let walked = walk(space, gfn);
        if walked.entry == Entry::Absent && walked.level >= Level::PD {
            match map_block(space, region, over, gpa)? {
                Block::Mapped => return Ok(Filled::Fresh(PageSize::Size2M)),
                Block::Taken => continue,
                Block::NotWhole => {}
            }
        }
        let page = over.page(region, gfn);
        if walked.entry == Entry::Absent {
            over.image.page(page).map_err(failed(gpa, Access::Read))?;
        }
        let cursor = space.table.cursor_at(gfn, Level::PT)?;
        match cursor.entry(gfn) {
            // Only what is loaded is mapped, and something may have been unmapped since it was looked at.
            Entry::Absent if over.image.loaded(page).is_none() => {}
            Entry::Absent if cursor.level() == Level::PT => {
                let around = map_pages(space, region, over, cursor, gfn)?;
                count(&space.counters.image_around, around - 1);
                return Ok(Filled::Fresh(PageSize::Size4K));
            }
            Entry::Marker(Marker::Returned) => {
                if let Some(filled) = serve_returned(space, region, cursor, gpa, Access::Read)? {
                    return Ok(filled);
                }
            }
            Entry::Marker(marker) => {
                return Err(FaultError::Marked { gpa, access: Access::Read, marker });
            }
            Entry::Leaf(_) => return republish(space, cursor, gfn),
            // It changed on the way.
            _ => {}
        }
    }
}

/// What became of the attempt to map a block.
enum Block {
    /// It is mapped.
    Mapped,
    /// Something has come to it meanwhile.
    Taken,
    /// The image does not have all of it in one piece, or not all of it is RAM.
    NotWhole,
}

/// Maps the image's block around `gpa` by one leaf, where nothing was mapped a moment ago.
fn map_block<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    over: &Over,
    gpa: Gpa,
) -> Result<Block, FaultError> {
    let range = GfnRange::entry(gpa.gfn(), Level::PD);
    if !region.range.covers(range) {
        return Ok(Block::NotWhole);
    }
    let page = over.page(region, range.start());
    let block = match space.policy.pages {
        PageSize::Size4K => over.image.whole_block(page),
        // Short of memory it goes by pages, which may be there already.
        _ => match over.image.load_block(page) {
            Err(LoadError::Exhausted(_)) => None,
            loaded => loaded.map_err(failed(gpa, Access::Read))?,
        },
    };
    let Some(block) = block else { return Ok(Block::NotWhole) };
    // H2
    P::at(Step::H2);
    let mut cursor = space.table.cursor_at(range.start(), Level::PD)?;
    // H3
    if P::takes(Steps::H3_RECHECK_HUGE) {
        P::at(Step::H3);
    }
    let vacant = cursor.level() == Level::PD && cursor.entry(range.start()) == Entry::Absent;
    if P::takes(Steps::H3_RECHECK_HUGE) && !vacant {
        return Ok(Block::Taken);
    }
    // H4
    P::at(Step::H4);
    let leaf = Leaf::image(block.first(), over.rights());
    let published = if vacant {
        cursor.map(range.start(), leaf)
    } else {
        cursor.map_blindly(range.start(), leaf)
    };
    published.install(&*space.mirror)?;
    Ok(Block::Mapped)
}

/// Maps the loaded page at `gfn`, and those around it that are loaded and untouched; how many. They are there, so they
/// cost an entry, and the guest a fault less.
fn map_pages<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    over: &Over,
    mut cursor: Cursor<'_, P>,
    gfn: Gfn,
) -> Result<u64, MirrorError> {
    let range = cursor.range().intersection(region.range).expect("the page is in both");
    let mut run: Option<Run> = None;
    let mut pages = 0;
    for next in range.iter().chain([range.end()]) {
        let wanted = next < range.end() && cursor.entry(next) == Entry::Absent;
        let frame = wanted.then(|| over.image.loaded(over.page(region, next))).flatten();
        if let (Some(run), Some(frame)) = (run.as_mut(), frame)
            && run.frame.add(run.frames) == frame
            && run.gfn.add(run.frames) == next
        {
            run.frames += 1;
            continue;
        }
        if let Some(done) = run.take() {
            pages += done.frames;
            let asked = done.range().contains(gfn);
            let published = cursor.map_run(done, over.rights(), Source::Image);
            if asked {
                published.install(&*space.mirror)?;
            } else {
                published.offer(&*space.mirror)?;
            }
        }
        run = frame.map(|frame| Run { gfn: next, frame, frames: 1 });
    }
    Ok(pages)
}

/// Where the bytes of a page are that becomes the guest's own.
enum Origin {
    /// In a frame of the image.
    Image(FrameNo),
    /// In the frame that is going to be the guest's; the image gets it back where it is not taken.
    Given(OwnRun),
}

/// Serves a store at `gpa`.
pub(super) fn serve_write<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    over: &Over,
    gpa: Gpa,
) -> Result<Filled, FaultError> {
    let (gfn, access) = (gpa.gfn(), Access::Write);
    loop {
        // K1
        P::at(Step::K1);
        let walked = walk(space, gfn);
        let huge = walked.level > Level::PT && matches!(walked.entry, Entry::Leaf(_));
        let page = match over.sharing {
            Sharing::Private if walked.entry == Entry::Absent => {
                let page = over.page(region, gfn);
                let given = over.image.give(page).map_err(failed(gpa, access))?;
                Some(match given {
                    Some(frame) => Origin::Given(OwnRun::of(&space.pool, frame)),
                    None => Origin::Image(over.image.page(page).map_err(failed(gpa, access))?),
                })
            }
            _ => None,
        };
        // K2
        P::at(Step::K2);
        let mut cursor = space.table.cursor_at(gfn, Level::PT)?;
        // K3
        if P::takes(Steps::K3_RECHECK_SMALL) {
            P::at(Step::K3);
        }
        let stale = cursor.level() > Level::PT && !huge;
        if !P::takes(Steps::K3_RECHECK_SMALL)
            && stale
            && matches!(cursor.entry(gfn), Entry::Leaf(_))
        {
            let Some(child) = cursor.make_child(gfn) else { continue };
            cursor = child;
        }
        match (cursor.entry(gfn), page) {
            (Entry::Absent, Some(from)) if cursor.level() == Level::PT => {
                let frame = match from {
                    Origin::Given(given) => given.give(&space.pool).expect("it is of this pool"),
                    Origin::Image(from) => {
                        let frame = frame_for_copy(space, region, &mut cursor, gfn)
                            .map_err(|cause| FaultError::Exhausted { gpa, access, cause })?;
                        // K4
                        P::at(Step::K4);
                        space.pool.copy(from, frame);
                        frame
                    }
                };
                over.image.note_store(over.page(region, gfn));
                cursor.map(gfn, Leaf::own(frame, Prot::RAM)).install(&*space.mirror)?;
                return Ok(Filled::Copied);
            }
            (Entry::Absent, None) if over.sharing == Sharing::Shared => {
                return Err(FaultError::ReadOnly { gpa });
            }
            (Entry::Marker(Marker::Returned), _) => {
                if let Some(filled) = serve_returned(space, region, cursor, gpa, access)? {
                    return Ok(filled);
                }
            }
            (Entry::Marker(marker), _) => return Err(FaultError::Marked { gpa, access, marker }),
            (Entry::Leaf(leaf), _) if leaf.prot.allows(access) => {
                return republish(space, cursor, gfn);
            }
            (Entry::Leaf(leaf), _) if cursor.level() == Level::PT => {
                return own(space, region, cursor, gpa, leaf);
            }
            (Entry::Leaf(leaf), _) if !leaf.prot.copies_on_write() => {
                return Err(FaultError::ReadOnly { gpa });
            }
            (Entry::Leaf(_), _) if huge => cursor.split(gfn, |_| None)?,
            // It changed on the way.
            _ => {}
        }
    }
}

/// Serves a touch of a page that the guest has given back: it begins as zeroes, and not as the image's once more. None where
/// all of its block was given back, which is split now.
fn serve_returned<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    mut cursor: Cursor<'_, P>,
    gpa: Gpa,
    access: Access,
) -> Result<Option<Filled>, FaultError> {
    let gfn = gpa.gfn();
    if cursor.level() > Level::PT {
        cursor.split(gfn, |_| None)?;
        return Ok(None);
    }
    P::at(Step::F3);
    let frame = frame_for_copy(space, region, &mut cursor, gfn)
        .map_err(|cause| FaultError::Exhausted { gpa, access, cause })?;
    space.pool.memory().zero(frame, 1);
    P::at(Step::F4);
    let published = cursor.map(gfn, Leaf::own(frame, Prot::RAM));
    P::at(Step::F5);
    published.install(&*space.mirror)?;
    Ok(Some(Filled::Fresh(PageSize::Size4K)))
}

/// Puts what is mapped at `gfn` into the window (again).
fn republish<P: Protocol>(
    space: &AddressSpace<P>,
    mut cursor: Cursor<'_, P>,
    gfn: Gfn,
) -> Result<Filled, FaultError> {
    if let Some(there) = cursor.republish(gfn) {
        there.install(&*space.mirror)?;
    }
    Ok(Filled::Present)
}

/// Maps every absent page of `range`, in one block of `region`; how many.
pub(super) fn populate<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    over: &Over,
    range: GfnRange,
) -> Result<u64, FaultError> {
    let mut pages = 0;
    for gfn in range.iter().filter(|&gfn| region.range.contains(gfn)) {
        if walk(space, gfn).entry == Entry::Absent {
            serve_read(space, region, over, gfn.gpa())?;
            pages += 1;
        }
    }
    Ok(pages)
}
