//! What precedes the bytes of pages.

use std::fmt;
use std::ops::Range;

use super::fields::Fields;
use super::frame::{self, FrameHeader, Kind, Lane};
use super::{Digest, WireError, ZERO_PAGE_CHECKSUM, is_zero, page_checksum};
use crate::addr::{Gfn, GfnRange};
use crate::geometry::{FRAME_BYTES, TREE_FRAMES};

/// Bytes of a page.
pub const PAGE_BYTES: usize = FRAME_BYTES as usize;

/// Most pages of one frame: a block of 2 MiB.
pub const MOST_PAGES: usize = 512;

/// Bytes of a body before its map of zero pages.
const FIXED: usize = 16;

/// The longest body: the map of a whole block and a checksum for each page.
pub(super) const LONGEST_BODY: usize = FIXED + MOST_PAGES / 8 + MOST_PAGES * 8;

/// Flags of a frame.
const REQUESTED: u8 = 1;
const PREFETCHED: u8 = 2;

/// How the payload of a frame is packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Encoding {
    /// The pages as they are.
    Raw = 0,
    /// All of them as one block of LZ4, without a frame or a length.
    Lz4 = 1,
    /// All of them as one frame of Zstandard.
    Zstd = 2,
}

impl Encoding {
    pub(super) const fn from_byte(byte: u8) -> Option<Encoding> {
        match byte {
            0 => Some(Encoding::Raw),
            1 => Some(Encoding::Lz4),
            2 => Some(Encoding::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encoding::Raw => "raw",
            Encoding::Lz4 => "lz4",
            Encoding::Zstd => "zstd",
        })
    }
}

/// Why pages are sent. It decides the stream that they go over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// Their turn has come: a bulk stream.
    Bulk,
    /// One of them was requested: the urgent stream.
    Requested,
    /// They lie near one that was requested: the urgent stream.
    Prefetched,
}

impl Purpose {
    /// The lane that pages of this purpose go over.
    pub const fn lane(self) -> Lane {
        match self {
            Purpose::Bulk => Lane::BulkToSink,
            Purpose::Requested | Purpose::Prefetched => Lane::UrgentToSink,
        }
    }

    const fn flags(self) -> u8 {
        match self {
            Purpose::Bulk => 0,
            Purpose::Requested => REQUESTED,
            Purpose::Prefetched => PREFETCHED,
        }
    }
}

/// The purpose that `flags` say on `lane`, if they may be there.
pub(super) const fn purpose(flags: u8, lane: Lane) -> Option<Purpose> {
    match (flags, lane) {
        (0, Lane::BulkToSink) => Some(Purpose::Bulk),
        (REQUESTED, Lane::UrgentToSink) => Some(Purpose::Requested),
        (PREFETCHED, Lane::UrgentToSink) => Some(Purpose::Prefetched),
        _ => None,
    }
}

/// Up to 512 pages of one block: which of them are zeroes and so not sent, the checksums of the others, and how those are packed
/// into the payload that follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PagesHeader {
    first: Gfn,
    purpose: Purpose,
    count: u16,
    zero: [u64; MOST_PAGES / 64],
    checksums: Vec<u64>,
    encoding: Encoding,
    payload: u32,
}

impl PagesHeader {
    /// No pages yet; the next one is that of `first`.
    pub const fn new(first: Gfn, purpose: Purpose) -> PagesHeader {
        PagesHeader {
            first,
            purpose,
            count: 0,
            zero: [0; MOST_PAGES / 64],
            checksums: Vec::new(),
            encoding: Encoding::Raw,
            payload: 0,
        }
    }

    /// Adds the next page, which is zeroes.
    ///
    /// # Errors
    /// [`WireError::CrossesBlock`] if it is not of the block of the first.
    pub fn push_zero(&mut self) -> Result<(), WireError> {
        let at = self.next()?;
        self.zero[at / 64] |= 1 << (at % 64);
        self.count += 1;
        Ok(())
    }

    /// Adds the next page, whose checksum is `checksum`. The payload is raw again.
    ///
    /// # Errors
    /// As [`push_zero`](PagesHeader::push_zero).
    pub fn push(&mut self, checksum: u64) -> Result<(), WireError> {
        self.next()?;
        self.checksums.push(checksum);
        self.count += 1;
        (self.encoding, self.payload) = (Encoding::Raw, self.raw_bytes() as u32);
        Ok(())
    }

    /// Adds the next page: `page`, looked at and summed up. Its checksum is returned.
    ///
    /// # Errors
    /// As [`push_zero`](PagesHeader::push_zero).
    pub fn push_page(&mut self, page: &[u8; PAGE_BYTES]) -> Result<u64, WireError> {
        if is_zero(page) {
            return self.push_zero().map(|()| ZERO_PAGE_CHECKSUM);
        }
        let checksum = page_checksum(page);
        self.push(checksum).map(|()| checksum)
    }

    /// Says that the payload is packed in `bytes` bytes.
    ///
    /// # Errors
    /// [`WireError::Payload`] unless that is less than raw, or exactly it for [`Encoding::Raw`].
    pub fn set_payload(&mut self, encoding: Encoding, bytes: usize) -> Result<(), WireError> {
        let pages = self.nonzero();
        let fits = match encoding {
            Encoding::Raw => bytes == self.raw_bytes(),
            Encoding::Lz4 | Encoding::Zstd => bytes > 0 && bytes < self.raw_bytes(),
        };
        if !fits {
            return Err(WireError::Payload { length: bytes as u64, pages, encoding });
        }
        (self.encoding, self.payload) = (encoding, bytes as u32);
        Ok(())
    }

    fn next(&self) -> Result<usize, WireError> {
        let at = usize::from(self.count);
        check_block(self.first, at as u64 + 1)?;
        Ok(at)
    }

    /// The first page.
    pub const fn first(&self) -> Gfn {
        self.first
    }

    /// How many pages, zeroes included: 1 to [`MOST_PAGES`] in one that was received.
    pub const fn count(&self) -> usize {
        self.count as usize
    }

    /// The pages.
    ///
    /// # Panics
    /// If there are none: never for one that was received.
    pub fn pages(&self) -> GfnRange {
        GfnRange::new(self.first, u64::from(self.count)).expect("a frame has pages")
    }

    /// Why they are sent.
    pub const fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Whether the page `at` (below [`count`](PagesHeader::count)) is zeroes, and not in the payload.
    ///
    /// # Panics
    /// If there is no such page.
    pub const fn is_zero(&self, at: usize) -> bool {
        assert!(at < self.count as usize, "no such page");
        self.zero[at / 64] >> (at % 64) & 1 == 1
    }

    /// How many pages are in the payload.
    pub const fn nonzero(&self) -> usize {
        self.checksums.len()
    }

    /// The pages in the payload, in order.
    pub fn nonzero_pages(&self) -> impl Iterator<Item = Gfn> {
        self.nonzero_runs().flatten().map(|at| self.first.add(at as u64))
    }

    /// Runs of pages that are in the payload, in order and as long as they are; counted from the first page.
    pub fn nonzero_runs(&self) -> impl Iterator<Item = Range<usize>> {
        self.runs(false)
    }

    /// Runs of pages that are zeroes; likewise.
    pub fn zero_runs(&self) -> impl Iterator<Item = Range<usize>> {
        self.runs(true)
    }

    fn runs(&self, zero: bool) -> impl Iterator<Item = Range<usize>> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = (next..self.count()).find(|&at| self.is_zero(at) == zero)?;
            let end = (start..self.count()).find(|&at| self.is_zero(at) != zero);
            next = end.unwrap_or(self.count());
            Some(start..next)
        })
    }

    /// The checksums of the pages in the payload, in order.
    pub fn checksums(&self) -> &[u64] {
        &self.checksums
    }

    /// Every page with its checksum, in order, zeroes included: what a [`Digest`] is made of.
    pub fn sums(&self) -> impl Iterator<Item = (Gfn, u64)> {
        let mut sums = self.checksums.iter();
        (0..self.count()).map(move |at| {
            let sum = if self.is_zero(at) { None } else { sums.next() };
            (self.first.add(at as u64), *sum.unwrap_or(&ZERO_PAGE_CHECKSUM))
        })
    }

    /// The digest of its pages.
    pub fn digest(&self) -> Digest {
        let mut digest = Digest::new();
        self.sums().for_each(|(gfn, sum)| digest.add(gfn, sum));
        digest
    }

    /// How the payload is packed.
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The length of the payload, in bytes.
    pub const fn payload_bytes(&self) -> usize {
        self.payload as usize
    }

    /// The length of the payload before it was packed, in bytes.
    pub const fn raw_bytes(&self) -> usize {
        self.checksums.len() * PAGE_BYTES
    }

    /// Puts it behind `out`, as a whole frame but for the payload.
    ///
    /// # Errors
    /// [`WireError::Value`] if it has no pages. `out` is as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        frame::put(Kind::Pages, self.purpose.flags(), out, |out| {
            check_count(self.count)?;
            out.extend(self.first.as_u64().to_le_bytes());
            out.extend(self.payload.to_le_bytes());
            out.extend(self.count.to_le_bytes());
            out.extend([self.encoding as u8, 0]);
            let words = &self.zero[..self.count().div_ceil(64)];
            words.iter().for_each(|word| out.extend(word.to_le_bytes()));
            self.checksums.iter().for_each(|sum| out.extend(sum.to_le_bytes()));
            Ok(())
        })
    }

    /// From a whole frame, without its payload, that came over `lane`.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn decode(bytes: &[u8], lane: Lane) -> Result<PagesHeader, WireError> {
        let (header, body) = frame::split(bytes, lane)?;
        PagesHeader::from_checked(&header, body)
    }

    /// From the body of a frame whose header has been read.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn from_body(header: &FrameHeader, body: &[u8]) -> Result<PagesHeader, WireError> {
        header.check(body)?;
        PagesHeader::from_checked(header, body)
    }

    fn from_checked(header: &FrameHeader, body: &[u8]) -> Result<PagesHeader, WireError> {
        let (kind, lane) = (header.kind(), header.lane());
        let purpose = match kind {
            Kind::Pages => purpose(header.flags(), lane),
            _ => None,
        };
        let purpose = purpose.ok_or(WireError::WrongLane { kind, lane })?;
        let what = kind.name();
        let mut fields = Fields::new(what, body);
        let first = fields.gfn()?;
        let payload = fields.u32()?;
        let count = fields.u16()?;
        let encoding = fields.u8()?;
        let encoding = Encoding::from_byte(encoding).ok_or(WireError::Value {
            what,
            field: "encoding",
            value: encoding.into(),
        })?;
        fields.reserved::<1>()?;
        check_count(count)?;
        check_block(first, u64::from(count))?;
        let mut pages =
            PagesHeader { count, encoding, payload, ..PagesHeader::new(first, purpose) };
        let words = pages.count().div_ceil(64);
        for word in &mut pages.zero[..words] {
            *word = fields.u64()?;
        }
        let behind = count % 64;
        if behind != 0 && pages.zero[words - 1] >> behind != 0 {
            return Err(WireError::Reserved(what));
        }
        let zeroes: u32 = pages.zero.iter().map(|word| word.count_ones()).sum();
        let nonzero = pages.count() - zeroes as usize;
        pages.checksums = fields.words(nonzero)?;
        pages.set_payload(encoding, payload as usize)?;
        Ok(pages)
    }
}

fn check_count(count: u16) -> Result<(), WireError> {
    if count == 0 || usize::from(count) > MOST_PAGES {
        let value = count.into();
        return Err(WireError::Value { what: "Pages", field: "number of pages", value });
    }
    Ok(())
}

fn check_block(first: Gfn, count: u64) -> Result<(), WireError> {
    let most = MOST_PAGES as u64;
    if first.offset_in(most) + count > most || first.as_u64() >= TREE_FRAMES {
        return Err(WireError::CrossesBlock { first, count });
    }
    Ok(())
}

/// A fence: what is sent behind it on this bulk stream is newer than what is sent before it on any.
pub(in crate::postcopy) fn put_fence(number: u64, out: &mut Vec<u8>) {
    frame::put(Kind::Fence, 0, out, |out| {
        out.extend(number.to_le_bytes());
        Ok(())
    })
    .expect("a fence has eight bytes");
}

/// The number of a fence, from the body of its frame.
pub(in crate::postcopy) fn fence(header: &FrameHeader, body: &[u8]) -> Result<u64, WireError> {
    header.check(body)?;
    let mut fields = Fields::new(header.kind().name(), body);
    let number = fields.u64()?;
    fields.end()?;
    Ok(number)
}
