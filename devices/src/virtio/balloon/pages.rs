//! Pages on their way to the host and back: runs of them, and what became of each.

use crate::dma::{Access, DmaError, Segment};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::host::{Given, Reclaim, Refused};
use super::wire::NUMBER;

/// Bytes of numbers that are read, and sorted, together.
const BATCH: usize = 4096;

/// What a balloon counts, in pages.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Named by the driver as given.
    pub(super) inflated: u64,
    /// As taken again.
    pub(super) deflated: u64,
    /// As free.
    pub(super) reported: u64,
    /// Reported, and too many at once.
    pub(super) ignored: u64,
    /// Their memory went to the host.
    pub(super) went: u64,
    /// A device had them pinned.
    pub(super) pinned: u64,
    /// Others used them too.
    pub(super) shared: u64,
    /// They were no RAM.
    pub(super) not_ram: u64,
    /// They showed a shared image.
    pub(super) image: u64,
    /// They were less than a page of the pool.
    pub(super) cut: u64,
    /// The memory service failed.
    pub(super) failed: u64,
    /// Times that statistics came.
    pub(super) statistics: u64,
}

/// Where pages go, and what became of them.
#[derive(Debug)]
pub(super) struct Pages {
    host: Box<dyn Reclaim>,
    pub(super) counts: Counts,
    /// Why the memory service failed the last time.
    pub(super) failure: Option<String>,
    bytes: Box<[u8; BATCH]>,
    numbers: Vec<u32>,
}

/// Whether pages go or come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToHost,
    ToGuest,
}

impl Pages {
    pub(super) fn new(host: Box<dyn Reclaim>) -> Pages {
        let (bytes, numbers) = (Box::new([0; BATCH]), Vec::with_capacity(BATCH / NUMBER));
        Pages { host, counts: Counts::default(), failure: None, bytes, numbers }
    }

    /// Moves the pages whose numbers are in `segments`, as many bytes as there are, a multiple of a number's.
    pub(super) fn move_named<M: GuestMemory>(
        &mut self,
        segments: &[Segment],
        memory: &M,
        way: Way,
    ) -> Result<(), DmaError> {
        let mut filled = 0;
        for &segment in segments {
            let mut left = Some(segment);
            while let Some(part) = left {
                // A number may lie in two segments: what is filled of a batch stays until the batch is full.
                let (head, rest) = part.split_at((BATCH - filled) as u32);
                left = rest;
                let Some(head) = head else { break };
                let into = &mut self.bytes[filled..filled + head.len as usize];
                let read = memory.read_slice(into, GuestAddress(head.addr));
                read.map_err(|error| unreadable(head, &error))?;
                filled += head.len as usize;
                if filled == BATCH {
                    self.move_batch(filled, way);
                    filled = 0;
                }
            }
        }
        self.move_batch(filled, way);
        Ok(())
    }

    /// Moves the pages whose numbers are in the first `filled` bytes.
    fn move_batch(&mut self, filled: usize, way: Way) {
        let (numbers, _) = self.bytes[..filled].as_chunks::<NUMBER>();
        let mut sorted = std::mem::take(&mut self.numbers);
        sorted.clear();
        sorted.extend(numbers.iter().map(|&number| u32::from_le_bytes(number)));
        sorted.sort_unstable();
        sorted.dedup();
        for run in sorted.chunk_by(|&one, &next| one + 1 == next) {
            self.move_run(u64::from(run[0]), run.len() as u64, way);
        }
        self.numbers = sorted;
    }

    /// Moves the `frames` from `first` on, or what of them is whole pages of the pool.
    pub(super) fn move_run(&mut self, first: u64, frames: u64, way: Way) {
        let granule = self.host.granule();
        // A frame number has 52 bits at most.
        let start = first.next_multiple_of(granule);
        let end = (first + frames) / granule * granule;
        let whole = end.saturating_sub(start);
        self.counts.cut += frames - whole;
        if whole == 0 {
            return;
        }
        let given = match way {
            Way::ToHost => self.host.give_back(start, whole),
            Way::ToGuest => self.host.take_back(start, whole).map(|_| Given::default()),
        };
        match given {
            Ok(Given { went, pinned, shared }) => {
                self.counts.went += went;
                self.counts.pinned += pinned;
                self.counts.shared += shared;
            }
            Err(Refused::NotRam) => self.counts.not_ram += whole,
            Err(Refused::Image) => self.counts.image += whole,
            Err(Refused::CutsPage) => self.counts.cut += whole,
            Err(Refused::Failed(reason)) => {
                self.counts.failed += whole;
                self.failure = Some(reason);
            }
        }
    }
}

fn unreadable(segment: Segment, error: &vm_memory::GuestMemoryError) -> DmaError {
    let Segment { addr, len } = segment;
    DmaError { addr, len, access: Access::Read, reason: error.to_string() }
}
