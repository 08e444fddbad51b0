//! Bytes that a file of the host has not taken yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::dma::{Access, DmaError, Segment};

/// Bytes in order, up to a bound.
#[derive(Debug)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    most: usize,
}

impl Backlog {
    /// Nothing yet, `most` bytes at most. It takes no memory until it has some.
    pub fn new(most: usize) -> Backlog {
        Backlog { bytes: VecDeque::new(), most }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes have room.
    pub fn room(&self) -> usize {
        self.most - self.bytes.len()
    }

    /// Forgets everything; how many bytes that were.
    pub fn clear(&mut self) -> usize {
        std::mem::take(&mut self.bytes).len()
    }

    /// Adds `byte`; whether there was room.
    pub fn push(&mut self, byte: u8) -> bool {
        let fits = self.room() > 0;
        if fits {
            self.bytes.push_back(byte);
        }
        fits
    }

    /// Forgets the oldest bytes, until `bytes` have room or nothing is left; how many.
    pub fn make_room(&mut self, bytes: usize) -> usize {
        let gone = bytes.saturating_sub(self.room()).min(self.bytes.len());
        self.bytes.drain(..gone);
        gone
    }

    /// Copies `segments` behind what is there.
    ///
    /// # Errors
    /// [`DmaError`] where the memory cannot be used.
    ///
    /// # Panics
    /// If they have no room.
    pub fn append<M: GuestMemory>(
        &mut self,
        memory: &M,
        segments: &[Segment],
    ) -> Result<(), DmaError> {
        let mut chunk = [0; 4096];
        for &Segment { addr, len } in segments {
            assert!(len as usize <= self.room(), "who appends has looked for room");
            let mut done = 0;
            while done < len {
                let some = (len - done).min(chunk.len() as u32);
                let into = &mut chunk[..some as usize];
                // The end of a segment was checked when it was taken from its chain.
                let read = memory.read_slice(into, GuestAddress(addr + u64::from(done)));
                let reason = |error: vm_memory::GuestMemoryError| error.to_string();
                read.map_err(reason).map_err(|reason| {
                    let access = Access::Read;
                    DmaError { addr, len, access, reason }
                })?;
                self.bytes.extend(&*into);
                done += some;
            }
        }
        Ok(())
    }

    /// Writes to `file` until it takes no more; how many bytes went.
    ///
    /// # Errors
    /// What the system says, beside that it would block. What went before is gone.
    pub fn flush(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let mut flushed = 0;
        while !self.bytes.is_empty() {
            match rustix::io::write(file, self.bytes.as_slices().0) {
                Ok(0) | Err(rustix::io::Errno::WOULDBLOCK) => break,
                Ok(went) => {
                    self.bytes.drain(..went);
                    flushed += went;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.bytes.is_empty() {
            // A burst's memory is not kept for the next.
            self.bytes = VecDeque::new();
        }
        Ok(flushed)
    }
}
