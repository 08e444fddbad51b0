//! Pages that came, on their way into the guest.

use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::io::AsyncRead;

use crate::addr::GfnRange;
use crate::geometry::Level;
use crate::place::{Arrived, Arriving, BlockParcel, Onto, PlaceError, RunParcel};
use crate::protocol::Protocol;
use crate::service::Guest;

use super::requests::{Line, Requests};
use super::stream::{FrameReader, StreamError};
use super::wire::{MOST_PAGES, PAGE_BYTES, PagesHeader};

/// Why pages could not be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum LandingError {
    /// They could not be read.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// They could not be placed.
    #[error(transparent)]
    Place(#[from] PlaceError),
}

/// Where pages are read to that cannot be read to where they stay.
pub(super) struct Landing<'b> {
    pages: Vec<u8>,
    berths: &'b Berths,
}

/// Frames that pages are being read to, by all streams. A page that is asked for meanwhile lies elsewhere. So there are never more of
/// them than the pool has beyond the guest's RAM: whoever needs a frame finds one.
#[derive(Debug)]
pub(super) struct Berths {
    room: u64,
    out: AtomicU64,
}

/// Those of one.
struct Berth<'b> {
    berths: &'b Berths,
    frames: u64,
}

impl Berths {
    /// Those of the pool that `guest` lies in, alone.
    pub(super) fn of<P: Protocol>(guest: &Guest<P>) -> Berths {
        let room = guest.pool_frames().saturating_sub(guest.ram_frames());
        Berths { room, out: AtomicU64::new(0) }
    }

    /// So many more of them, if there may be.
    fn begin(&self, frames: u64) -> Option<Berth<'_>> {
        // An exact count, whatever the order: it says nothing of other memory.
        let out = self.out.fetch_add(frames, Relaxed);
        let berth = Berth { berths: self, frames };
        (out + frames <= self.room).then_some(berth)
    }
}

impl Drop for Berth<'_> {
    fn drop(&mut self) {
        self.berths.out.fetch_sub(self.frames, Relaxed);
    }
}

/// Fewer pages than these are copied to their frames: that costs less than to ask for the frames first.
const FEW: usize = 4;

/// A block of which fewer pages than these are no zeroes is not made of one piece: it would cost the pool more than the guest uses.
const MOSTLY: usize = MOST_PAGES / 2;

impl<'b> Landing<'b> {
    pub(super) fn new(berths: &'b Berths) -> Landing<'b> {
        Landing { pages: Vec::new(), berths }
    }

    /// Takes the pages of `header`, which `reader` has just read.
    pub(super) async fn take<P: Protocol, L: Line, R: AsyncRead + Unpin>(
        &mut self,
        guest: &Guest<P>,
        requests: &Requests<L>,
        onto: Onto,
        header: &PagesHeader,
        reader: &mut FrameReader<R>,
    ) -> Result<Arrived, LandingError> {
        let range = header.pages();
        let bytes = header.count() * PAGE_BYTES;
        let whole = range.frames() == Level::PD.entry_frames() && header.nonzero() > MOSTLY;
        // A block of which pages are there needs no frames for those.
        if whole && guest.holds_nothing(range) {
            if let Some((parcel, berth)) = self.block(guest, range) {
                return self.dock(guest, requests, onto, header, (parcel, berth), reader).await;
            }
        } else if header.count() >= FEW
            && let Some(berth) = self.berths.begin(header.nonzero() as u64)
            && let Some(runs) = runs(guest, onto, header)?
        {
            return self.moor(guest, requests, onto, header, (runs, berth), reader).await;
        }
        reader.read_payload(header, self.room(bytes)).await?;
        Ok(arrive(guest, requests, onto, header, &self.pages)?)
    }

    /// A block for all of `range`.
    fn block<P: Protocol>(
        &self,
        guest: &Guest<P>,
        range: GfnRange,
    ) -> Option<(BlockParcel, Berth<'b>)> {
        let berth = self.berths.begin(range.frames())?;
        Some((guest.block_parcel(range.start())?, berth))
    }

    /// Reads the pages of `header` to the block that they make up.
    async fn dock<P: Protocol, L: Line, R: AsyncRead + Unpin>(
        &mut self,
        guest: &Guest<P>,
        requests: &Requests<L>,
        onto: Onto,
        header: &PagesHeader,
        (mut parcel, berth): (BlockParcel, Berth<'_>),
        reader: &mut FrameReader<R>,
    ) -> Result<Arrived, LandingError> {
        reader.read_payload(header, parcel.bytes()).await?;
        match guest.place_block(parcel, onto)? {
            Ok(arrived) => return Ok(arrived),
            // Pages of it came meanwhile. What it holds goes back to the pool before the rest takes frames.
            Err(mut parcel) => {
                self.room(header.count() * PAGE_BYTES).copy_from_slice(parcel.bytes());
            }
        }
        drop(berth);
        Ok(arrive(guest, requests, onto, header, &self.pages)?)
    }

    /// Room for `bytes`.
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.pages.len() < bytes {
            self.pages.resize(bytes, 0);
        }
        &mut self.pages[..bytes]
    }

    /// Reads the pages of `header` to `runs`, where they stay. Those of zeroes arrive as they do anywhere.
    async fn moor<P: Protocol, L: Line, R: AsyncRead + Unpin>(
        &self,
        guest: &Guest<P>,
        requests: &Requests<L>,
        onto: Onto,
        header: &PagesHeader,
        (mut runs, berth): (Vec<RunParcel>, Berth<'_>),
        reader: &mut FrameReader<R>,
    ) -> Result<Arrived, LandingError> {
        let mut buffers: Vec<_> = runs.iter_mut().map(|run| IoSliceMut::new(run.bytes())).collect();
        reader.read_into(header, &mut buffers).await?;
        let mut arrived = Arrived::default();
        for (at, run) in header.nonzero_runs().zip(runs) {
            let first = header.first().add(at.start as u64);
            arrived += guest.arrive(first, onto, run.map(Arriving::Frame))?;
        }
        drop(berth);
        for zeroes in header.zero_runs() {
            arrived += leave(guest, requests, onto, part(header, &zeroes))?;
        }
        Ok(arrived)
    }
}

/// Frames for the pages of `header` that are not zeroes, where they should lie; none if one of them cannot.
fn runs<P: Protocol>(
    guest: &Guest<P>,
    onto: Onto,
    header: &PagesHeader,
) -> Result<Option<Vec<RunParcel>>, PlaceError> {
    header.nonzero_runs().map(|run| guest.run_parcel(part(header, &run), onto)).collect()
}

/// The pages at `run` of those of `header`.
fn part(header: &PagesHeader, run: &Range<usize>) -> GfnRange {
    let first = header.first().add(run.start as u64);
    GfnRange::new(first, run.len() as u64).expect("it is a part of what was checked")
}

/// Has pages of zeroes arrive.
fn leave<P: Protocol, L: Line>(
    guest: &Guest<P>,
    requests: &Requests<L>,
    onto: Onto,
    range: GfnRange,
) -> Result<Arrived, PlaceError> {
    let wanted = requests.wanted_in(range);
    let count = range.frames() as usize;
    let pages = (0..count).map(|at| zeroes(wanted.contains(&range.start().add(at as u64))));
    guest.arrive(range.start(), onto, pages)
}

/// A page of zeroes that nobody waits for is left to its first touch. Who begins to wait meanwhile asks, and is answered.
fn zeroes(wanted: bool) -> Arriving<'static> {
    if wanted { Arriving::Zero } else { Arriving::Nothing }
}

fn arrive<P: Protocol, L: Line>(
    guest: &Guest<P>,
    requests: &Requests<L>,
    onto: Onto,
    header: &PagesHeader,
    bytes: &[u8],
) -> Result<Arrived, PlaceError> {
    let range = header.pages();
    let (pages, _) = bytes[..header.count() * PAGE_BYTES].as_chunks::<PAGE_BYTES>();
    let wanted = requests.wanted_in(range);
    let arriving = pages.iter().enumerate().map(|(at, page)| {
        if header.is_zero(at) {
            zeroes(wanted.contains(&range.start().add(at as u64)))
        } else {
            Arriving::Bytes(page)
        }
    });
    guest.arrive(range.start(), onto, arriving)
}

#[cfg(test)]
mod tests;
