//! The same reads by `io_uring` alone: no queue, no device, no guest.
#![allow(unsafe_code, reason = "hands buffers to the kernel")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Instant;

use io_uring::{IoUring, opcode, types};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::bench::{BenchError, failed};

use super::served::{BUFFERS, DISK, Done, RAM, Work, processor};

/// A loop over a file.
pub(super) struct Bare {
    ring: IoUring,
    memory: GuestMemoryMmap,
    _file: File,
}

impl Bare {
    /// Reads of `file` into `memory`.
    pub(super) fn new(memory: GuestMemoryMmap, file: &File) -> Result<Bare, BenchError> {
        let file = file.try_clone().map_err(BenchError::System)?;
        let ring = IoUring::new(256).map_err(BenchError::System)?;
        ring.submitter().register_files(&[file.as_raw_fd()]).map_err(BenchError::System)?;
        Ok(Bare { ring, memory, _file: file })
    }

    /// `requests` reads one behind the other, as [`super::served::Bench::run`] makes them.
    pub(super) fn run(&mut self, work: Work, requests: u32) -> Result<Done, BenchError> {
        let bytes = u64::from(work.bytes);
        let (start, cpu) = (Instant::now(), processor());
        let (mut begun, mut done) = (0, 0);
        while done < requests {
            while begun < requests.min(done + u32::from(work.depth)) {
                let place = u64::from(begun) % (DISK / bytes) * bytes;
                let buffer = BUFFERS + u64::from(begun) % ((RAM - BUFFERS) / bytes) * bytes;
                let at = self.memory.get_host_address(GuestAddress(buffer)).map_err(failed)?;
                let read = opcode::Read::new(types::Fixed(0), at, work.bytes).offset(place).build();
                // SAFETY: the buffer lies in a mapping that `self` keeps, and nothing else uses its bytes.
                let pushed = unsafe { self.ring.submission().push(&read) };
                pushed.map_err(failed)?;
                begun += 1;
            }
            self.ring.submit_and_wait(1).map_err(BenchError::System)?;
            for entry in self.ring.completion() {
                if entry.result() != work.bytes.cast_signed() {
                    return Err(BenchError::Guest(format!("a read ended with {}", entry.result())));
                }
                done += 1;
            }
        }
        let requests = f64::from(requests);
        let seconds = start.elapsed().as_secs_f64() / requests;
        Ok(Done { seconds, cpu: (processor() - cpu).as_secs_f64() / requests })
    }
}
