//! Pages that came, on their way into the guest.

use tokio::io::AsyncRead;

use crate::addr::GfnRange;
use crate::geometry::Level;
use crate::place::{Arrived, Arriving, Onto, PlaceError};
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

/// Where pages are read to that do not make up a block.
pub(super) struct Landing {
    pages: Vec<u8>,
}

/// A block of which fewer pages than these are no zeroes is not made of one piece: it would cost the pool more than the guest uses.
const MOSTLY: usize = MOST_PAGES / 2;

impl Landing {
    pub(super) fn new() -> Landing {
        Landing { pages: Vec::new() }
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
        let whole = range.frames() == Level::PD.entry_frames() && header.nonzero() > MOSTLY;
        if whole && let Some(mut parcel) = guest.block_parcel(range.start()) {
            reader.read_payload(header, parcel.bytes()).await?;
            return Ok(match guest.place_block(parcel, onto)? {
                Ok(arrived) => arrived,
                Err(mut parcel) => arrive(guest, requests, onto, header, range, parcel.bytes())?,
            });
        }
        let bytes = header.count() * PAGE_BYTES;
        if self.pages.len() < bytes {
            self.pages.resize(bytes, 0);
        }
        reader.read_payload(header, &mut self.pages[..bytes]).await?;
        Ok(arrive(guest, requests, onto, header, range, &self.pages[..bytes])?)
    }
}

fn arrive<P: Protocol, L: Line>(
    guest: &Guest<P>,
    requests: &Requests<L>,
    onto: Onto,
    header: &PagesHeader,
    range: GfnRange,
    bytes: &[u8],
) -> Result<Arrived, PlaceError> {
    let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
    // A page of zeroes that nobody waits for is left to its first touch. Who begins to wait meanwhile asks, and is answered.
    let wanted = requests.wanted_in(range);
    let arriving = pages.iter().enumerate().map(|(at, page)| {
        if !header.is_zero(at) {
            Arriving::Bytes(page)
        } else if wanted.contains(&range.start().add(at as u64)) {
            Arriving::Zero
        } else {
            Arriving::Nothing
        }
    });
    guest.arrive(range.start(), onto, arriving)
}
