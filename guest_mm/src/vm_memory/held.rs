//! What a view has pinned, by guest address.

use crate::addr::{FrameNo, Gfn, GfnRange, GpaRange};
use crate::geometry::FRAME_BYTES;
use crate::pin::{PinBatch, PinError};
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::AddressSpace;

/// Pins that are never given up one by one, because slices of them may be anywhere.
#[derive(Debug)]
pub(super) struct Held<'g, P: Protocol> {
    pins: PinBatch<'g, P>,
    /// Pinned for reading. Where it is pinned for writing too, that came later and counts: the page may be
    /// another by then, and the device is to read what it wrote.
    readable: Pieces,
    /// Pinned for writing.
    writable: Pieces,
}

/// Frames that lie in order, as their guest addresses do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) first: FrameNo,
    pub(super) frames: u64,
}

/// Pieces in the order of the first guest frame of each; no two have a guest frame in common. A list: most views hold a
/// handful of pages, and live for some microseconds.
#[derive(Debug, Default)]
struct Pieces(Vec<(Gfn, Piece)>);

impl Pieces {
    /// How many begin at `gfn` or before.
    #[inline]
    fn up_to(&self, gfn: Gfn) -> usize {
        self.0.partition_point(|&(start, _)| start <= gfn)
    }

    /// What there is from `gfn` on.
    #[inline]
    fn at(&self, gfn: Gfn) -> Option<Piece> {
        let (start, piece) = self.0[..self.up_to(gfn)].last()?;
        let offset = gfn.as_u64() - start.as_u64();
        (offset < piece.frames)
            .then(|| Piece { first: piece.first.add(offset), frames: piece.frames - offset })
    }

    /// Where the next piece from `gfn` on begins, if before `end`; else `end`.
    fn next(&self, gfn: Gfn, end: Gfn) -> Gfn {
        let from = self.0.partition_point(|&(start, _)| start < gfn);
        self.0.get(from).map_or(end, |&(start, _)| start.min(end))
    }

    fn insert(&mut self, gfn: Gfn, piece: Piece) {
        let at = self.up_to(gfn);
        if self.0.is_empty() {
            self.0.reserve(ROOM);
        }
        self.0.insert(at, (gfn, piece));
    }
}

/// Pieces that there is room for at once: rings, headers and status bytes of a queue.
const ROOM: usize = 8;

impl<'g, P: Protocol> Held<'g, P> {
    pub(super) fn new(space: &'g AddressSpace<P>) -> Held<'g, P> {
        let (readable, writable) = (Pieces::default(), Pieces::default());
        Held { pins: PinBatch::new(space), readable, writable }
    }

    /// Pins what of `range` is not pinned for `access` yet.
    ///
    /// # Errors
    /// [`PinError`]; nothing more is pinned than before.
    pub(super) fn hold(&mut self, range: GfnRange, access: Access) -> Result<(), PinError> {
        if range.frames() == 1 {
            return self.hold_page(range, access);
        }
        let gaps = self.gaps(range, access);
        if gaps.is_empty() {
            return Ok(());
        }
        let known = self.pins.len();
        self.pins.pin(gaps.iter().map(|&gap| (GpaRange::from(gap), access)))?;
        let pieces = match access {
            Access::Read => &mut self.readable,
            Access::Write => &mut self.writable,
        };
        for (index, gap) in gaps.iter().enumerate() {
            let mut gfn = gap.start();
            for (first, _, bytes) in self.pins.pieces(known + index) {
                let piece = Piece { first, frames: bytes / FRAME_BYTES };
                pieces.insert(gfn, piece);
                gfn = gfn.add(piece.frames);
            }
        }
        Ok(())
    }

    /// The same for one page, which is what rings and headers are.
    fn hold_page(&mut self, page: GfnRange, access: Access) -> Result<(), PinError> {
        if self.at(page.start(), access).is_some() {
            return Ok(());
        }
        if self.pins.is_empty() {
            self.pins.reserve(ROOM, 0);
        }
        let known = self.pins.len();
        self.pins.pin([(GpaRange::from(page), access)])?;
        let (first, _, _) = self.pins.pieces(known).next().expect("a pin is not empty");
        let piece = Piece { first, frames: 1 };
        match access {
            Access::Read => self.readable.insert(page.start(), piece),
            Access::Write => self.writable.insert(page.start(), piece),
        }
        Ok(())
    }

    /// The frames from `gfn` on, which is held, as far as they lie in order, but no more than `wanted`.
    ///
    /// # Panics
    /// If it is not held.
    pub(super) fn piece(&self, gfn: Gfn, wanted: u64, access: Access) -> Piece {
        let mut found = self.at(gfn, access).expect("a range is held before it is lent");
        // Pages that were pinned one by one may lie in order all the same.
        while found.frames < wanted
            && let Some(next) = self.at(gfn.add(found.frames), access)
            && next.first == found.first.add(found.frames)
        {
            found.frames += next.frames;
        }
        Piece { frames: found.frames.min(wanted), ..found }
    }

    /// What is pinned for `access` from `gfn` on.
    fn at(&self, gfn: Gfn, access: Access) -> Option<Piece> {
        let writable = self.writable.at(gfn);
        if writable.is_some() || access == Access::Write {
            return writable;
        }
        let piece = self.readable.at(gfn)?;
        let end = self.writable.next(gfn, gfn.add(piece.frames));
        Some(Piece { frames: end.as_u64() - gfn.as_u64(), ..piece })
    }

    /// The parts of `range` that are not pinned for `access`.
    fn gaps(&self, range: GfnRange, access: Access) -> Vec<GfnRange> {
        let mut gaps = Vec::new();
        let mut gfn = range.start();
        while gfn < range.end() {
            if let Some(piece) = self.at(gfn, access) {
                gfn = gfn.add(piece.frames);
                continue;
            }
            let mut end = self.writable.next(gfn, range.end());
            if access == Access::Read {
                end = self.readable.next(gfn, end);
            }
            gaps.extend(GfnRange::new(gfn, end.as_u64() - gfn.as_u64()));
            gfn = end;
        }
        gaps
    }
}
