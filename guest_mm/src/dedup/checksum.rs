//! What tells pages apart, most of the time.

use twox_hash::XxHash3_64;

use crate::addr::FrameNo;
use crate::geometry::FRAME_BYTES;
use crate::pool::Pool;

/// The checksum of a page's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Checksum(u64);

impl Checksum {
    /// That of the page `frame`, as it was at some moment; of a page that is being written to, of bytes that it may never
    /// have had at once.
    pub(super) fn of(pool: &Pool, frame: FrameNo) -> Checksum {
        // What others may write to is copied first: a reference to it would promise that it stays.
        let mut bytes = [0; FRAME_BYTES as usize];
        pool.memory().read(frame, 0, &mut bytes);
        // Most pages lie in order: the next one is on its way while this one is summed up.
        pool.memory().prefetch(frame.add(1));
        Checksum(XxHash3_64::oneshot(&bytes))
    }

    /// That of a page of zeroes.
    pub(super) fn of_zeroes() -> Checksum {
        Checksum(XxHash3_64::oneshot(&[0; FRAME_BYTES as usize]))
    }

    /// Enough of it to see that a page has changed.
    pub(super) fn short(self) -> u32 {
        self.0 as u32
    }
}

/// Takes a checksum for its own hash.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct AsItIs(u64);

impl std::hash::Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A map whose keys are checksums.
pub(super) type ByChecksum<T> =
    std::collections::HashMap<Checksum, T, std::hash::BuildHasherDefault<AsItIs>>;
