//! Pages that arrive together: read to where they stay, and mapped then.

use crate::addr::GfnRange;
use crate::fault::run_to_fill;
use crate::pool::OwnRun;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, RamRegion};

use super::arrive::page_table;
use super::{Onto, Parcel, PlaceError};

/// Frames for pages of a guest block that lie in order, where the pages should lie, to be filled and then placed one by one
/// ([`Arriving::Frame`](super::Arriving::Frame)). Their bytes are whatever they were.
#[derive(Debug)]
pub struct RunParcel(OwnRun);

impl RunParcel {
    /// Frames for the pages of `range`, all in one block; none if one of them is there, or cannot lie where it should.
    pub(crate) fn new<P: Protocol>(
        space: &AddressSpace<P>,
        range: GfnRange,
        onto: Onto,
    ) -> Result<Option<RunParcel>, PlaceError> {
        let covers = |region: &&RamRegion| region.range.covers(range);
        let Some(region) = space.region(range.start()).filter(covers) else { return Ok(None) };
        if region.over.is_some() || space.check_granule(range).is_err() {
            return Ok(None);
        }
        let Some(mut cursor) = page_table(space, range.start(), onto)? else { return Ok(None) };
        if !range.iter().all(|gfn| onto.fills(cursor.entry(gfn))) {
            return Ok(None);
        }
        let run = run_to_fill(space, region, &mut cursor, range);
        Ok(run?.map(RunParcel))
    }

    /// Their bytes.
    #[cfg(not(loom))]
    pub fn bytes(&mut self) -> &mut [u8] {
        self.0.bytes()
    }
}

impl From<OwnRun> for RunParcel {
    fn from(run: OwnRun) -> RunParcel {
        RunParcel(run)
    }
}

/// The frames one by one, in order.
impl Iterator for RunParcel {
    type Item = Parcel;

    fn next(&mut self) -> Option<Parcel> {
        self.0.split_first().map(Parcel::from)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let frames = self.0.frames() as usize;
        (frames, Some(frames))
    }
}

impl ExactSizeIterator for RunParcel {}
