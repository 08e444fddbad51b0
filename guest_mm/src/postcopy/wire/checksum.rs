//! Sums: of a page, of a body, of all pages of a guest.

use twox_hash::{XxHash3_64, XxHash3_128};

use super::PAGE_BYTES;
use crate::addr::Gfn;

/// The checksum of a page of zeroes, which is elided and has none in its frame.
pub const ZERO_PAGE_CHECKSUM: u64 = 0x93d7_6fe1_48c6_89ba;

/// The checksum of a page: xxh3-64 of its bytes.
#[inline]
pub fn page_checksum(page: &[u8; PAGE_BYTES]) -> u64 {
    XxHash3_64::oneshot(page)
}

/// Whether a page is zeroes, and so need not be sent.
#[inline]
pub fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    // A line at a time: the first that is not zero ends the search.
    page.as_chunks::<64>().0.iter().all(|line| line.iter().fold(0, |any, byte| any | byte) == 0)
}

/// The checksum of a body under the first half of its header, so that neither can be damaged unseen.
pub(super) fn body_checksum(header: [u8; 8], body: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(u64::from_le_bytes(header), body)
}

/// A sum over pages that does not depend on their order: both sides come to the same, whatever stream a page went over.
///
/// It finds damage and mistakes. It is no proof against who chooses the pages: that is what TLS is for.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Digest {
    sum: u128,
    pages: u64,
}

impl Digest {
    /// That of no page.
    pub const fn new() -> Digest {
        Digest { sum: 0, pages: 0 }
    }

    /// As a message has it.
    pub const fn from_parts(sum: u128, pages: u64) -> Digest {
        Digest { sum, pages }
    }

    /// Adds the page at `gfn` whose [`page_checksum`] is `checksum`.
    pub fn add(&mut self, gfn: Gfn, checksum: u64) {
        self.sum = self.sum.wrapping_add(mixed(gfn, checksum));
        self.pages = self.pages.wrapping_add(1);
    }

    /// Takes away what [`add`](Digest::add) added: the page is replaced by another.
    pub fn remove(&mut self, gfn: Gfn, checksum: u64) {
        self.sum = self.sum.wrapping_sub(mixed(gfn, checksum));
        self.pages = self.pages.wrapping_sub(1);
    }

    /// Adds all pages of `other`: what another stream has counted.
    pub fn merge(&mut self, other: Digest) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.pages = self.pages.wrapping_add(other.pages);
    }

    /// The sum.
    pub const fn sum(self) -> u128 {
        self.sum
    }

    /// How many pages are in it.
    pub const fn pages(self) -> u64 {
        self.pages
    }
}

fn mixed(gfn: Gfn, checksum: u64) -> u128 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&gfn.as_u64().to_le_bytes());
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    XxHash3_128::oneshot(&bytes)
}
