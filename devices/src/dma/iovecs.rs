//! Addresses of held memory, for system calls.
#![allow(unsafe_code, reason = "addresses go from thread to thread")]

use vm_memory::VolatileSlice;

/// Pieces that room is kept for.
const ROOM: usize = 512;

/// A list of pieces of memory as `readv(2)` takes it. They are valid for as long as the [`super::Hold`] that they are of
/// holds them; nothing here reads or writes them.
#[derive(Debug, Default)]
pub struct Iovecs(Vec<libc::iovec>);

// SAFETY: the addresses are plain numbers here; who uses them as memory (a system call) answers for what is there. The
// memory itself, the pool's direct map, is no thread's own.
unsafe impl Send for Iovecs {}

impl Iovecs {
    /// Pieces that one system call takes at most.
    pub const AT_ONCE: usize = libc::UIO_MAXIOV as usize;

    /// No pieces; room for a usual number stays.
    pub fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(ROOM);
    }

    /// Adds the memory of `slice`.
    pub fn push(&mut self, slice: &VolatileSlice<'_>) {
        let guard = slice.ptr_guard_mut();
        self.0.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: slice.len() });
    }

    /// Drops the first `bytes`, which were moved.
    pub fn advance(&mut self, mut bytes: usize) {
        let whole = self.0.iter().take_while(|piece| {
            let gone = piece.iov_len <= bytes;
            if gone {
                bytes -= piece.iov_len;
            }
            gone
        });
        let whole = whole.count();
        self.0.drain(..whole);
        if let Some(first) = self.0.first_mut() {
            first.iov_base = first.iov_base.cast::<u8>().wrapping_add(bytes).cast();
            first.iov_len -= bytes;
        }
    }

    /// The pieces.
    pub fn as_slice(&self) -> &[libc::iovec] {
        &self.0
    }

    /// Those that one system call takes: [`Iovecs::AT_ONCE`], or all. The rest follows, as behind any short transfer.
    pub fn at_once(&self) -> &[libc::iovec] {
        &self.0[..self.0.len().min(Iovecs::AT_ONCE)]
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|piece| piece.iov_len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_gets_no_more_pieces_than_it_takes() {
        let mut byte = [0_u8];
        let slice = VolatileSlice::from(&mut byte[..]);
        let mut list = Iovecs::default();
        assert!(list.at_once().is_empty());
        (0..Iovecs::AT_ONCE).for_each(|_| list.push(&slice));
        assert_eq!(list.at_once().len(), list.as_slice().len());
        list.push(&slice);
        assert_eq!(list.at_once().len(), Iovecs::AT_ONCE);
    }

    #[test]
    fn what_was_moved_is_dropped_piece_by_piece() {
        let mut memory = [0_u8; 64];
        let mut list = Iovecs::default();
        let (one, other) = memory.split_at_mut(40);
        list.push(&VolatileSlice::from(&mut one[..8]));
        list.push(&VolatileSlice::from(other));
        list.advance(0);
        assert_eq!(list.bytes(), 32);
        list.advance(3);
        assert_eq!((list.bytes(), list.as_slice().len()), (29, 2));
        list.advance(5);
        assert_eq!((list.bytes(), list.as_slice().len()), (24, 1));
        list.advance(24);
        assert!(list.as_slice().is_empty());
    }
}
