//! Requests in flight, as many as there are to be, by the driver's non-blocking half.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use rt::println;
use rt::sectors::{self, SECTOR};
use rt::tsc::{self, Frequency};
use rt::virtio::Failure;
use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp};

use crate::plan::Plan;
use crate::{Disk, times};

/// Lines about wrong sectors and failed requests; the rest is only counted.
const MAX_REPORTS: u64 = 20;
/// Milliseconds without any answer after which the disk is given up.
const PATIENCE: u64 = 20_000;

/// A request to make.
#[derive(Clone, Copy)]
pub(crate) struct Op {
    pub(crate) sector: u64,
    pub(crate) work: Work,
}

#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Whatever is there.
    Read,
    /// Read what was written with this sequence.
    Check(u64),
    /// Write with this sequence.
    Write(u64),
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) bytes: u64,
    /// Sectors.
    pub(crate) wrong: u64,
    /// Requests.
    pub(crate) errors: u64,
    /// The most that were in flight at a time.
    pub(crate) depth: usize,
}

/// What the device uses while a request is in flight. Never freed: a device that does not answer may still write to it.
struct Buffers {
    request: &'static mut BlkReq,
    data: &'static mut [u8],
    response: &'static mut BlkResp,
}

struct Pending {
    token: u16,
    op: Op,
    start: u64,
    buffers: Buffers,
}

pub(crate) struct Flight {
    free: Vec<Buffers>,
    pending: Vec<Pending>,
    frequency: Frequency,
    pub(crate) counts: Counts,
}

impl Flight {
    pub(crate) fn new(plan: &Plan, frequency: Frequency) -> Flight {
        let buffers = |_| Buffers {
            request: Box::leak(Box::default()),
            data: Box::leak(vec![0; plan.size].into_boxed_slice()),
            response: Box::leak(Box::default()),
        };
        Flight {
            free: (0..plan.depth).map(buffers).collect(),
            pending: Vec::with_capacity(plan.depth),
            frequency,
            counts: Counts::default(),
        }
    }

    /// Makes all `ops`, and returns when all are answered.
    pub(crate) fn run(
        &mut self,
        disk: &mut Disk,
        mut ops: impl Iterator<Item = Op>,
    ) -> Result<(), Failure> {
        let mut next = ops.next();
        let mut patience = self.frequency.after(PATIENCE);
        loop {
            while let Some(op) = next
                && self.begin(disk, op)?
            {
                next = ops.next();
            }
            if self.pending.is_empty() {
                return Ok(());
            }
            match disk.peek_used() {
                Some(token) => {
                    self.end(disk, token)?;
                    patience = self.frequency.after(PATIENCE);
                }
                None if patience.passed() => {
                    return Err(Failure::Wrong("no answer for 20 s, with requests in flight"));
                }
                None => core::hint::spin_loop(),
            }
        }
    }

    /// Puts a request into the queue, if there is room.
    fn begin(&mut self, disk: &mut Disk, op: Op) -> Result<bool, Failure> {
        let Some(buffers) = self.free.pop() else { return Ok(false) };
        let Buffers { request, data, response } = buffers;
        let block = op.sector as usize;
        if let Work::Write(sequence) = op.work {
            sectors::fill(data, op.sector, sequence);
        } else {
            // What a read leaves out must not look like what the last one brought.
            data.fill(0xee);
        }
        *response = BlkResp::default();
        let start = tsc::now();
        // SAFETY: the three are in `pending`, where nobody looks at them, until `end` completes the request.
        let token = unsafe {
            match op.work {
                Work::Write(_) => disk.write_blocks_nb(block, request, data, response),
                Work::Read | Work::Check(_) => disk.read_blocks_nb(block, request, data, response),
            }
        };
        let buffers = Buffers { request, data, response };
        match token {
            Ok(token) => {
                self.pending.push(Pending { token, op, start, buffers });
                self.counts.depth = self.counts.depth.max(self.pending.len());
                Ok(true)
            }
            Err(Error::QueueFull) if !self.pending.is_empty() => {
                self.free.push(buffers);
                Ok(false)
            }
            Err(error) => Err(Failure::Driver("request", error)),
        }
    }

    /// Takes the answer to `token` and looks at it.
    fn end(&mut self, disk: &mut Disk, token: u16) -> Result<(), Failure> {
        let place = self.pending.iter().position(|pending| pending.token == token);
        let place = place.ok_or(Failure::Wrong("the device answered a request nobody made"))?;
        let Pending { op, start, buffers, .. } = self.pending.swap_remove(place);
        let Buffers { request, data, response } = buffers;
        // SAFETY: the buffers that `begin` got this token for.
        let result = unsafe {
            match op.work {
                Work::Write(_) => disk.complete_write_blocks(token, request, data, response),
                Work::Read | Work::Check(_) => {
                    disk.complete_read_blocks(token, request, data, response)
                }
            }
        };
        let write = matches!(op.work, Work::Write(_));
        times(write).record(tsc::now() - start);
        match (result, op.work) {
            (Err(error), _) => {
                self.counts.errors += 1;
                if self.counts.errors <= MAX_REPORTS {
                    let what = if write { "write" } else { "read" };
                    println!("blk: {what} of sector {}: {error}", op.sector);
                }
            }
            (Ok(()), Work::Check(sequence)) => self.check(data, op.sector, sequence),
            (Ok(()), _) => {}
        }
        *(if write { &mut self.counts.writes } else { &mut self.counts.reads }) += 1;
        self.counts.bytes += data.len() as u64;
        self.free.push(Buffers { request, data, response });
        Ok(())
    }

    fn check(&mut self, data: &[u8], first: u64, sequence: u64) {
        for (sector, bytes) in (first..).zip(data.chunks_exact(SECTOR)) {
            let Err(bad) = sectors::check(bytes, sector, sequence) else { continue };
            self.counts.wrong += 1;
            if self.counts.wrong <= MAX_REPORTS {
                println!(
                    "blk: wrong in sector {sector}, word {}: expected {:#x}, found {:#x}",
                    bad.word, bad.expected, bad.found
                );
            }
        }
    }
}
