//! A whole block that arrives: read to where it stays, and mapped by one entry.

use crate::addr::{Gfn, GfnRange};
use crate::entry::{Entry, Leaf, Marker};
use crate::fault::FaultError;
use crate::geometry::Level;
use crate::mirror::Run;
use crate::pool::OwnRun;
use crate::prot::Prot;
use crate::protocol::{Protocol, Step};
use crate::space::{AddressSpace, count};

use super::{Arrived, Onto, PlaceError};

/// A block of the pool that is nobody's yet, to be filled and then placed. Its bytes are whatever they were.
#[derive(Debug)]
pub struct BlockParcel {
    /// The guest block that it is for.
    gfn: Gfn,
    block: OwnRun,
}

impl BlockParcel {
    /// A block for the guest block around `gfn`, where that should lie if it can be; none if that is not all RAM, or no
    /// block of the pool is whole.
    pub(crate) fn new<P: Protocol>(space: &AddressSpace<P>, gfn: Gfn) -> Option<BlockParcel> {
        let range = GfnRange::entry(gfn, Level::PD);
        let region = space.region(gfn).filter(|region| region.range.covers(range))?;
        let hint = region.preferred_frame(range.start(), space.pool.nr_frames()).block();
        Some(BlockParcel { gfn: range.start(), block: OwnRun::block(&space.pool, hint)? })
    }

    /// Has the host back it by a huge page before it is filled, where it can: then the guest has it by one mapping.
    #[cfg(not(loom))]
    pub fn gather(&mut self) {
        self.block.gather();
    }

    /// Its bytes: 2 MiB.
    #[cfg(not(loom))]
    pub fn bytes(&mut self) -> &mut [u8] {
        self.block.bytes()
    }
}

/// Maps the block that `parcel` is for to it, if nothing of it is there yet, and lets those go on that wait for a page of it. If a
/// page of it is there, nothing has changed and the parcel comes back: its pages are to arrive one by one.
pub(crate) fn place_block<P: Protocol>(
    space: &AddressSpace<P>,
    parcel: BlockParcel,
    onto: Onto,
) -> Result<Result<Arrived, BlockParcel>, PlaceError> {
    let range = GfnRange::entry(parcel.gfn, Level::PD);
    let start = range.start();
    if let Some(region) = space.region(start) {
        onto.check(region, start.gpa())?;
    }
    // A1
    P::at(Step::A1);
    let mut directory = loop {
        let mut cursor = match onto {
            Onto::Missing => space.table.cursor_on(start, Level::PD),
            Onto::Resting | Onto::Untouched => {
                space.table.cursor_at(start, Level::PD).map_err(FaultError::from)?
            }
        };
        if cursor.level() == Level::PD {
            break cursor;
        }
        match cursor.entry(start) {
            Entry::Table(_) | Entry::Frozen(_) => {}
            entry @ Entry::Marker(_) if onto.fills(entry) => {
                cursor.split(start, |_| None).map_err(FaultError::from)?;
            }
            Entry::Absent | Entry::Leaf(_) | Entry::Marker(_) => return Ok(Err(parcel)),
        }
    };
    // A2
    P::at(Step::A2);
    let ended = match directory.entry(start) {
        entry if onto.fills(entry) => None,
        // Somebody waits for a page of it, so that it has a table.
        Entry::Table(_) => match directory.fold(start, Marker::Missing) {
            Some(ended) => Some(ended),
            None => return Ok(Err(parcel)),
        },
        _ => return Ok(Err(parcel)),
    };
    let Ok(first) = parcel.block.give(&space.pool) else {
        return Err(PlaceError::OtherService { gpa: start.gpa() });
    };
    // A3
    P::at(Step::A3);
    let published = directory.map(start, Leaf::own(first, Prot::RAM));
    // A4. Where the window cannot show it as one, it shows its pages.
    P::at(Step::A4);
    let run = Run { gfn: start, frame: first, frames: range.frames() };
    let shown = published.promote(&*space.mirror);
    let shown = shown.or_else(|_| space.mirror.install(run, Prot::RAM));
    drop(directory);
    // V2
    space.arrived(range);
    for reservation in ended.into_iter().flatten() {
        space.pool.unreserve(reservation);
    }
    count(&space.counters.placed, range.frames());
    shown?;
    Ok(Ok(Arrived { pages: range.frames(), duplicates: 0, huge: true }))
}
