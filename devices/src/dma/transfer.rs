//! Data between files of the host and guest memory, by one system call: the memory is held for as long as that takes.
#![allow(unsafe_code, reason = "readv and writev take memory by address")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Access, DmaError, Hold, Iovecs, Segment, part};

/// Moves data. It is meant to be used again, so that moving allocates nothing.
#[derive(Debug)]
pub struct Transfer<H: Hold> {
    hold: H,
    part: Vec<Segment>,
    pieces: Iovecs,
}

impl<H: Hold> Transfer<H> {
    /// Transfers by `hold`, which holds nothing.
    pub fn new(hold: H) -> Transfer<H> {
        Transfer { hold, part: Vec::new(), pieces: Iovecs::default() }
    }

    /// Reads from `file` into the `len` bytes of `segments` behind byte `from`: how many came, or what `readv(2)` says.
    ///
    /// # Errors
    /// [`DmaError`]; nothing was read.
    pub fn read(
        &mut self,
        file: BorrowedFd<'_>,
        segments: &[Segment],
        from: u64,
        len: u64,
    ) -> Result<io::Result<usize>, DmaError> {
        self.by(segments, from, len, Access::Write, |pieces| {
            // SAFETY: as `by` says.
            unsafe { libc::readv(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) }
        })
    }

    /// Writes the `len` bytes of `segments` behind byte `from` to `file`: how many went, or what `writev(2)` says.
    ///
    /// # Errors
    /// [`DmaError`]; nothing was written.
    pub fn write(
        &mut self,
        file: BorrowedFd<'_>,
        segments: &[Segment],
        from: u64,
        len: u64,
    ) -> Result<io::Result<usize>, DmaError> {
        self.by(segments, from, len, Access::Read, |pieces| {
            // SAFETY: as `by` says.
            unsafe { libc::writev(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) }
        })
    }

    /// Calls `call` with pieces that
    /// 1. are memory of the guest, valid for `access` until `call` returns: `hold` holds it meanwhile;
    /// 2. are no more than [`Iovecs::AT_ONCE`].
    fn by(
        &mut self,
        segments: &[Segment],
        from: u64,
        len: u64,
        access: Access,
        call: impl Fn(&[libc::iovec]) -> isize,
    ) -> Result<io::Result<usize>, DmaError> {
        part(segments, from, len, &mut self.part);
        self.part.truncate(Iovecs::AT_ONCE);
        self.hold.take(&self.part, access)?;
        self.hold.list(&mut self.pieces);
        let pieces = self.pieces.at_once();
        let moved = loop {
            match usize::try_from(call(pieces)) {
                Ok(moved) => break Ok(moved),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => break Err(error),
                },
            }
        };
        self.pieces.clear();
        self.hold.release();
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::dma::{Dma, Plain};

    #[test]
    fn bytes_go_from_a_file_to_memory_and_back() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let dma = Plain::new(memory);
        let mut transfer = Transfer::new(dma.hold());
        let (mut here, there) = UnixStream::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        let segments = [Segment { addr: 0x100, len: 4 }, Segment { addr: 0x200, len: 8 }];
        let blocked = transfer.read(there.as_fd(), &segments, 0, 12).unwrap().unwrap_err();
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        here.write_all(b"seven!!").unwrap();
        assert_eq!(transfer.read(there.as_fd(), &segments, 2, 100).unwrap().unwrap(), 7);
        let mut bytes = [0; 5];
        dma.view().read_slice(&mut bytes, GuestAddress(0x200)).unwrap();
        assert_eq!(&bytes, b"ven!!");
        assert_eq!(transfer.write(there.as_fd(), &segments, 3, 3).unwrap().unwrap(), 3);
        let mut bytes = [0; 3];
        here.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"eve");
        let outside = [Segment { addr: 0xfff, len: 2 }];
        assert!(transfer.write(there.as_fd(), &outside, 0, 2).is_err());
    }
}
