//! Pages of an image that a guest is going to store to become its own before it does, as K4 of `huge-vs-small-fault` would make
//! them: not copied from the image, but read to the frames where they stay.

use crate::addr::{FrameNo, Gfn, GfnRange};
use crate::entry::Entry;
use crate::fault::FaultError;
use crate::geometry::FRAME_BYTES;
use crate::image::{Image, LoadError};
use crate::mirror::Run;
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, Over, count};

use super::arrive::{Arriving, Onto, arrive, page_table, show};
use super::{BlockParcel, PlaceError, complete, place_block};

/// From so many pages on it takes less time to have the host back them in one call than at the touch of each.
const BACKED_AT_ONCE: u64 = 8;

/// Gives the guest pages of its own in `range`, in one block of RAM over an image, where it has touched none yet. They hold what
/// the image does.
pub(crate) fn own_ahead<P: Protocol>(
    space: &AddressSpace<P>,
    range: GfnRange,
) -> Result<(), PlaceError> {
    let not_ram = FaultError::NotRam { gpa: range.start().gpa(), access: Access::Write };
    let region = space.region(range.start()).filter(|region| region.range.covers(range));
    let region = region.ok_or(not_ram)?;
    Onto::Untouched.check(region, range.start().gpa())?;
    space.check_granule(range)?;
    // The check has found it.
    let Some(over) = &region.over else { return Ok(()) };
    let mut next = range.start();
    while next < range.end() {
        let rest = range.end().as_u64() - next.as_u64();
        let done = match Lent::of(&over.image, over.page(region, next), rest) {
            Some(lent) => lent.fill_and_map(space, over, next)?,
            // It is loaded already, or lies elsewhere.
            None => {
                copy(space, over, next, over.page(region, next))?;
                1
            }
        };
        next = next.add(done);
    }
    Ok(())
}

/// The same for all of the block at `start`, which the guest gets by one mapping if it has not touched any of it.
pub(crate) fn own_block_ahead<P: Protocol>(
    space: &AddressSpace<P>,
    block: GfnRange,
) -> Result<(), PlaceError> {
    let start = block.start();
    let over = space.region(start).and_then(|region| Some((region, region.over.as_ref()?)));
    let (Some((region, over)), Some(mut parcel)) = (over, BlockParcel::new(space, start)) else {
        return own_ahead(space, block);
    };
    parcel.gather();
    over.image.copy_out(over.page(region, start), parcel.bytes()).map_err(failed(start))?;
    match place_block(space, parcel, Onto::Untouched)? {
        Ok(_) => Ok(()),
        // The guest was there first, with some of its pages.
        Err(mut parcel) => {
            let (pages, _) = parcel.bytes().as_chunks();
            arrive(space, start, Onto::Untouched, pages.iter().map(Arriving::Bytes)).map(drop)
        }
    }
}

/// Frames of an image where pages of it would be loaded, in order, that are nobody's yet.
struct Lent {
    page: u64,
    first: FrameNo,
    frames: u64,
}

impl Lent {
    /// Those of the pages from `page` on, `most` at most, of one block: up to one that cannot be lent.
    fn of(image: &Image, page: u64, most: u64) -> Option<Lent> {
        // Where the window points already: elsewhere, each page would be a mapping of its own.
        let first = image.lend(page)?;
        let more = (page + 1..page + most).take_while(|&page| image.lend(page).is_some());
        let frames = 1 + more.count() as u64;
        Some(Lent { page, first, frames })
    }

    /// Reads the pages to them, and maps those that the guest, for which they begin at `gfn`, has not touched meanwhile; how many they
    /// were. No lock is held while the file is read.
    fn fill_and_map<P: Protocol>(
        self,
        space: &AddressSpace<P>,
        over: &Over,
        gfn: Gfn,
    ) -> Result<u64, PlaceError> {
        if self.frames >= BACKED_AT_ONCE {
            // Failing, each is backed when it is written.
            let _ = space.pool.memory().prefault(self.first, self.frames);
        }
        if let Err(error) = over.image.read_to(self.page, self.first, self.frames) {
            self.give_back(space, 0, self.frames);
            return Err(failed(gfn)(error));
        }
        let mut cursor = match page_table(space, gfn, Onto::Untouched) {
            Ok(Some(cursor)) => cursor,
            other => {
                self.give_back(space, 0, self.frames);
                return Ok(other.map(|_| self.frames)?);
            }
        };
        let (mut run, mut mapped, mut result): (Option<Run>, u64, _) = (None, 0, Ok(()));
        for i in 0..=self.frames {
            let at = gfn.add(i);
            let vacant = i < self.frames && cursor.entry(at) == Entry::Absent;
            match (&mut run, vacant) {
                (Some(run), true) => run.frames += 1,
                (None, true) => run = Some(Run { gfn: at, frame: self.first.add(i), frames: 1 }),
                (_, false) => {
                    if let Some(done) = run.take() {
                        mapped += done.frames;
                        result = result.and(show(space, &mut cursor, done));
                    }
                    if i < self.frames {
                        self.give_back(space, i, 1);
                    }
                }
            }
        }
        let (full, block) = (cursor.is_full(), cursor.range());
        drop(cursor);
        count(&space.counters.placed, mapped);
        result?;
        if full && mapped > 0 {
            complete(space, block, self.first)?;
        }
        Ok(self.frames)
    }

    /// They are the image's again, `frames` from the one at `from` on.
    fn give_back<P: Protocol>(&self, space: &AddressSpace<P>, from: u64, frames: u64) {
        space.pool.release(self.first.add(from), frames);
    }
}

/// Gives the guest a copy of `page` of the image at `gfn`.
fn copy<P: Protocol>(
    space: &AddressSpace<P>,
    over: &Over,
    gfn: Gfn,
    page: u64,
) -> Result<(), PlaceError> {
    let mut bytes = [0; FRAME_BYTES as usize];
    over.image.copy_out(page, &mut bytes).map_err(failed(gfn))?;
    arrive(space, gfn, Onto::Untouched, [Arriving::Bytes(&bytes)].into_iter()).map(drop)
}

/// What a store at `gfn` would be told.
fn failed(gfn: Gfn) -> impl Fn(LoadError) -> PlaceError {
    let (gpa, access) = (gfn.gpa(), Access::Write);
    move |cause| FaultError::Image { gpa, access, cause }.into()
}
