//! Pages that are read where they lie: of a guest that stands still.
#![allow(unsafe_code, reason = "hands out the pool's memory as bytes that do not change")]

use std::os::fd::{AsFd, BorrowedFd};

use crate::addr::{GfnRange, GpaRange};
use crate::lift;
use crate::pin::{PinError, Pinned};
use crate::pool::BackingKind;
use crate::prot::Access;
use crate::protocol::Protocol;

use super::Guest;

/// Pages that stay where they are while this is held.
#[derive(Debug)]
pub struct Lent<'g> {
    pinned: Pinned<'g>,
    file: Option<BorrowedFd<'g>>,
}

/// Some of them that lie in order: a number of whole pages.
#[derive(Clone, Copy, Debug)]
pub struct LentPiece<'l> {
    /// Their bytes.
    pub bytes: &'l [u8],
    /// The byte of [`Lent::file`] that they begin at.
    pub at: u64,
}

impl<P: Protocol> Guest<P> {
    /// The pages of `range`, all in one block, where they lie; none if one of them holds no bytes, and so has to be
    /// [lifted](Guest::lift).
    ///
    /// # Errors
    /// [`PinError`]: as [`Guest::pin`].
    pub fn lend(&self, range: GfnRange) -> Result<Option<Lent<'_>>, PinError> {
        if !lift::holds_bytes(self.space(), range) {
            return Ok(None);
        }
        // What is collapsed or merged meanwhile holds the same bytes.
        let pinned = self.pin(GpaRange::from(range), Access::Read)?;
        let pool = &self.space().pool;
        // A file of hugetlbfs cannot be spliced from.
        let splices = pool.kind() != BackingKind::Hugetlb;
        Ok(Some(Lent { pinned, file: splices.then(|| pool.file().as_fd()) }))
    }
}

impl<'g> Lent<'g> {
    /// Their bytes, in order, in as few pieces as their frames allow.
    ///
    /// # Safety
    /// Nobody writes to these pages while the pieces are used: no vCPU runs, and no device is at work.
    pub unsafe fn pieces(&self) -> impl Iterator<Item = LentPiece<'_>> {
        let offsets = self.pinned.offsets();
        self.pinned.iovecs().zip(offsets).map(|(piece, at)| {
            let start = piece.iov_base.cast();
            // SAFETY: the bytes lie in the direct map for as long as they are pinned, and the caller keeps them from changing.
            let bytes = unsafe { std::slice::from_raw_parts(start, piece.iov_len as usize) };
            LentPiece { bytes, at }
        })
    }

    /// The file that they lie in, for system calls that take pages of it by reference; none if it has no such calls. Who reads them
    /// later has to find them: this is held until then.
    pub fn file(&self) -> Option<BorrowedFd<'g>> {
        self.file
    }
}
