//! Pages of an image that a guest is going to store to become its own before it does, as K4 of `huge-vs-small-fault` would make
//! them: not copied from the image, but read to the frames where they stay.

use crate::addr::{Gfn, GfnRange};
use crate::fault::FaultError;
use crate::geometry::FRAME_BYTES;
use crate::image::{Image, LoadError};
use crate::pool::OwnRun;
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, Over};

use super::arrive::{Arriving, Onto, arrive};
use super::{BlockParcel, PlaceError, RunParcel, place_block};

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
        let page = over.page(region, next);
        let done = match lent(space, &over.image, page, rest) {
            Some(run) => {
                let frames = run.frames();
                fill(space, &over.image, page, next, run)?;
                frames
            }
            // It is loaded already, or lies elsewhere.
            None => {
                copy(space, over, next, page)?;
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

/// Frames of `image` where its pages from `page` on would be loaded, in order, that are nobody's yet: `most` at most, up to one that
/// cannot be lent.
fn lent<P: Protocol>(
    space: &AddressSpace<P>,
    image: &Image,
    page: u64,
    most: u64,
) -> Option<OwnRun> {
    // Where the window points already: elsewhere, each page would be a mapping of its own.
    let mut run = OwnRun::of(&space.pool, image.lend(page)?);
    (page + 1..page + most).map_while(|page| image.lend(page)).for_each(|frame| run.push(frame));
    Some(run)
}

/// Reads the pages of the image from `page` on to `run`, and gives them to the guest, for which they begin at `gfn`: those that it
/// has not touched meanwhile. No lock is held while the file is read.
fn fill<P: Protocol>(
    space: &AddressSpace<P>,
    image: &Image,
    page: u64,
    gfn: Gfn,
    run: OwnRun,
) -> Result<(), PlaceError> {
    if run.frames() >= BACKED_AT_ONCE {
        // Failing, each is backed when it is written.
        let _ = space.pool.memory().prefault(run.first(), run.frames());
    }
    image.read_to(page, run.first(), run.frames()).map_err(failed(gfn))?;
    arrive(space, gfn, Onto::Untouched, RunParcel::from(run).map(Arriving::Frame)).map(drop)
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
