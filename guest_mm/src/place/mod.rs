//! Pages that arrive from elsewhere: a migration's source, a snapshot's file. (Linux: `UFFDIO_COPY`.)
//!
//! Placing is A1 to A4 of `place-vs-retract` ([`crate::collapse`]). When the last page of a block has come, all of it is
//! shown by one huge page, and not before:
//!
//! ```text
//! huge-map-over-missing   place (the block's next page)          place (the block's last page)
//!                         A1 lock the page table                 M1 lock the page directory, then the table
//!                         A2 entry absent or missing?            M2 every page there, in order? else leave it
//!                         A3 publish the leaf                    M3 the PDE becomes the block, the window shows
//!                         A4 install it in the window               it with one mapping
//!
//! Invariant   the window shows a page only when it has come: M2 is looked at with both locks, so no page of the
//!             block is between A1 and A4.
//! Tolerated   blocks that stay in small pages because M2 came too early; a collapse finds them later.
//! Origin      ours. Cloud Hypervisor's issue 8663 is the same: the first page of a block arrived, the host mapped
//!             2 MiB of the file, and the guest read zeroes in all of it.
//! Variant     `HugeOnFirstPage` skips M2.
//! ```

#[cfg(not(loom))]
mod ahead;
mod arrive;
mod block;
#[cfg(all(test, loom))]
mod model;
mod parcel;
mod run;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::addr::{FrameNo, Gfn, GfnRange, Gpa};
use crate::collapse::{CollapseError, CollapsePolicy, Collapsed, Copying, collapse_block};
use crate::entry::{Entry, Leaf, Marker};
use crate::fault::{FaultError, frame_to_fill};
use crate::geometry::Level;
use crate::mirror::{MirrorError, Run};
use crate::prot::{Access, Prot};
use crate::protocol::{Protocol, Step, Steps};
use crate::space::{AddressSpace, CutsPage, RamRegion, count};
use crate::table::cursor::Cursor;

#[cfg(not(loom))]
pub(crate) use ahead::{own_ahead, own_block_ahead};
pub use arrive::{Arrived, Arriving, Onto, Page};
pub(crate) use arrive::{arrive, wake};
pub use block::BlockParcel;
pub(crate) use block::place_block;
pub use parcel::Parcel;
pub use run::RunParcel;

/// What a page holds that is placed.
#[derive(Debug)]
pub enum Content<'a> {
    /// These bytes: a page of them.
    Bytes(&'a Page),
    /// Zeroes.
    Zero,
    /// A frame that was filled before, and becomes the guest's.
    Frame(Parcel),
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placed {
    /// The page is there now; who waited for it goes on.
    Here,
    /// As before, and it was its block's last: the block is mapped huge now.
    Completed,
    /// A page was there already, which stays.
    AlreadyThere,
}

/// Why a page could not be placed. Nothing has changed, unless the window is to blame: then the page is there, and may
/// not be in the window yet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlaceError {
    /// A store there would fail as well.
    #[error("a page cannot be placed: {0}")]
    Fault(#[from] FaultError),
    /// The window could not be changed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The pool's pages are larger.
    #[error(transparent)]
    CutsPage(#[from] CutsPage),
    /// The frame is another pool's.
    #[error("the frame for guest-physical {gpa} is another service's")]
    OtherService {
        /// Where.
        gpa: Gpa,
    },
}

/// Fills the page around `gpa` if it is absent, missing or returned, and lets those go on that wait for it.
pub(crate) fn place<P: Protocol>(
    space: &AddressSpace<P>,
    gpa: Gpa,
    content: Content<'_>,
) -> Result<Placed, PlaceError> {
    let gfn = gpa.gfn();
    let not_ram = FaultError::NotRam { gpa, access: Access::Write };
    let region = space.region(gfn).ok_or(not_ram)?;
    if space.shares_image(gfn) {
        return Err(FaultError::ReadOnly { gpa }.into());
    }
    space.check_granule(GfnRange::entry(gfn, Level::PT))?;
    // A1
    P::at(Step::A1);
    let mut cursor = space.table.cursor_at(gfn, Level::PT).map_err(FaultError::from)?;
    // A2
    P::at(Step::A2);
    while cursor.level() > Level::PT {
        match cursor.entry(gfn) {
            Entry::Marker(Marker::Missing | Marker::Returned) => {
                cursor.split(gfn, |_| None).map_err(FaultError::from)?;
            }
            Entry::Marker(marker) => return Err(marked(gpa, marker)),
            Entry::Leaf(_) => return already_there(space, cursor, gfn),
            // It is being collapsed, so pages of it are there.
            _ => {}
        }
        drop(cursor);
        cursor = space.table.cursor_at(gfn, Level::PT).map_err(FaultError::from)?;
    }
    match cursor.entry(gfn) {
        Entry::Absent | Entry::Marker(Marker::Missing | Marker::Returned) => {}
        Entry::Marker(marker) => return Err(marked(gpa, marker)),
        _ => return already_there(space, cursor, gfn),
    }
    let frame = fill(space, region, &mut cursor, gfn, content)?;
    // A3
    P::at(Step::A3);
    let published = cursor.map(gfn, Leaf::own(frame, Prot::RAM));
    // A4
    P::at(Step::A4);
    let shown = published.install(&*space.mirror);
    let full = cursor.is_full();
    let block = cursor.range();
    drop(cursor);
    // V2
    space.arrived(GfnRange::entry(gfn, Level::PT));
    count(&space.counters.placed, 1);
    shown?;
    if full || !P::takes(Steps::M2_EVERY_PAGE_PRESENT) {
        return complete(space, block, frame);
    }
    Ok(Placed::Here)
}

fn marked(gpa: Gpa, marker: Marker) -> PlaceError {
    FaultError::Marked { gpa, access: Access::Write, marker }.into()
}

/// Who waits may have come before the page was there.
fn already_there<P: Protocol>(
    space: &AddressSpace<P>,
    mut cursor: Cursor<'_, P>,
    gfn: Gfn,
) -> Result<Placed, PlaceError> {
    if let Some(there) = cursor.republish(gfn) {
        there.install(&*space.mirror)?;
    }
    Ok(Placed::AlreadyThere)
}

/// A frame with `content`.
fn fill<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: &mut Cursor<'_, P>,
    gfn: Gfn,
    content: Content<'_>,
) -> Result<FrameNo, PlaceError> {
    if let Content::Frame(parcel) = content {
        return parcel.open(&space.pool).ok_or(PlaceError::OtherService { gpa: gfn.gpa() });
    }
    let frame = frame_to_fill(space, region, cursor, gfn, Access::Write)?;
    match content {
        #[cfg(not(loom))]
        Content::Bytes(bytes) => space.pool.memory().write(frame, 0, bytes),
        #[cfg(loom)]
        Content::Bytes(&word) => space.pool.memory().write(frame, word),
        Content::Zero => space.pool.memory().zero(frame, 1),
        Content::Frame(_) => {}
    }
    Ok(frame)
}

/// Maps `block` huge, if every page of it is there and lies in order; `frame` is one of them.
fn complete<P: Protocol>(
    space: &AddressSpace<P>,
    block: GfnRange,
    frame: FrameNo,
) -> Result<Placed, PlaceError> {
    if !P::takes(Steps::M2_EVERY_PAGE_PRESENT) {
        let run = Run { gfn: block.start(), frame: frame.block().first(), frames: block.frames() };
        P::at(Step::M3);
        space.mirror.promote(run, Prot::RAM)?;
        return Ok(Placed::Here);
    }
    // M1 to M3: they are the steps of a promotion, which takes both locks, and finds holes, markers and pages out of
    // their place.
    P::at(Step::M1);
    let policy = CollapsePolicy { max_holes: 0, copying: Copying::Never };
    match collapse_block(space, block, policy) {
        Ok(Collapsed::Promoted { .. }) => Ok(Placed::Completed),
        Ok(_) => Ok(Placed::Here),
        Err(CollapseError::Mirror(error)) => Err(error.into()),
    }
}
