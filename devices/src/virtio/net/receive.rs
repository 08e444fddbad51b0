//! Frames from the host to the driver (virtio 1.2, 5.1.6.4).
//!
//! How large a frame is shows only when it has been read, so there has to be room for the largest before that: where the
//! driver's chains may be merged, as many as it takes. They are held together and used up frame by frame; what is left
//! goes back to the ring.
//!
//! That is dear for a small frame that comes alone: 43 chains of 1536 bytes for one. So while frames are small, chains for
//! a small one are taken, if the ring has enough for the largest behind them. Memory of the device's own lies behind all:
//! a large frame that comes then spills into it, and that part is copied, once; from there on large ones are expected.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, VolatileSlice};

use crate::dma::{Access, Dma, Hold, Iovecs, Segment};
use crate::virtio::model::{Io, TURN};
use crate::virtio::queue::{Broken, Chain, Queue};

use super::host::{Host, Unmoved};
use super::wire::{HEADER, LARGEST_SENT, NUM_BUFFERS};
use super::{Net, gone};

/// Chains taken beside those for one frame: few for the first frames of a burst, which may be all.
const SPARE: usize = 1;
const MOST_SPARE: usize = 64;
/// A batch takes no other chain from here on. Its pieces, each page of each segment at worst, fit one system call (1024).
const ENOUGH_SEGMENTS: usize = 128;
const ENOUGH_BYTES: u64 = 384 << 10;
/// Small frames after a large one before the next is expected to be small.
const LARGE_FOR: u32 = 64;
/// The segments of a chain that are used.
const CHAIN_SEGMENTS: usize = 256;

/// A chain of a batch.
#[derive(Debug)]
struct Taken {
    head: u16,
    bytes: u32,
    /// Its first piece in the batch's list.
    piece: usize,
    /// Where the two bytes of `num_buffers` go if a frame begins here.
    count: [u64; 2],
}

/// Chains that frames are received to.
#[derive(Debug)]
pub(super) struct Batch<H> {
    hold: H,
    chains: Vec<Taken>,
    /// The first that is not used.
    next: usize,
    /// Bytes of those that are not used.
    room: u64,
    /// What the next frame may need of that.
    need: u64,
    segments: Vec<Segment>,
    pieces: Iovecs,
    /// Heads and bytes to tell the driver of.
    used: Vec<(u16, u32)>,
    spill: Vec<u8>,
}

/// What became of looking for buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// A frame of any size has room; or as large a one as the driver is ready for.
    There,
    /// The driver has to bring more first.
    None,
}

impl<H: Hold> Batch<H> {
    pub(super) fn new<D: Dma<Hold = H>>(dma: &D) -> Batch<H> {
        Batch {
            hold: dma.hold(),
            chains: Vec::new(),
            next: 0,
            room: 0,
            need: 0,
            segments: Vec::new(),
            pieces: Iovecs::default(),
            used: Vec::new(),
            spill: vec![0; LARGEST_SENT as usize],
        }
    }

    /// Holds nothing any more.
    pub(super) fn clear(&mut self) {
        self.hold.release();
        self.pieces.clear();
        self.chains.clear();
        self.used.clear();
        self.segments.clear();
        (self.next, self.room, self.need) = (0, 0, 0);
    }

    /// Takes `chain`, of which it uses no more than a frame can fill.
    fn take(&mut self, queue: u16, chain: &mut Chain) -> Result<(), Broken> {
        let head = chain.head;
        let bad = |reason: &str| Err(Broken::Request { queue, head, reason: reason.into() });
        if !chain.readable.is_empty() {
            return bad("is a buffer for frames with memory to read");
        }
        chain.writable.truncate(CHAIN_SEGMENTS);
        let mut left = LARGEST_SENT as u32;
        chain.writable.retain_mut(|segment| {
            let (now, _) = segment.split_at(left);
            left -= now.map_or(0, |now| now.len);
            now.is_some_and(|now| {
                *segment = now;
                true
            })
        });
        let bytes = LARGEST_SENT as u32 - left;
        let count = [NUM_BUFFERS, NUM_BUFFERS + 1].map(|at| address(&chain.writable, at));
        let [Some(low), Some(high)] = count else {
            return bad("is a buffer without room for a frame's header");
        };
        self.chains.push(Taken { head, bytes, piece: 0, count: [low, high] });
        self.room += u64::from(bytes);
        self.segments.extend_from_slice(&chain.writable);
        Ok(())
    }

    /// Holds the memory of all chains, and lists its pieces, with the device's own behind them.
    fn hold(&mut self, queue: u16) -> Result<(), Broken> {
        let held = self.hold.take(&self.segments, Access::Write);
        held.map_err(|source| Broken::Memory { queue, source })?;
        self.hold.list(&mut self.pieces);
        let mut piece = 0;
        for chain in &mut self.chains {
            chain.piece = piece;
            let mut left = chain.bytes as usize;
            // A piece is of one segment, and so of one chain.
            while left > 0 && piece < self.pieces.as_slice().len() {
                left = left.saturating_sub(self.pieces.as_slice()[piece].iov_len);
                piece += 1;
            }
        }
        self.pieces.push(&VolatileSlice::from(&mut self.spill[..]));
        Ok(())
    }

    /// Receives a frame to the chains that are not used: its bytes.
    fn receive(&mut self, host: &mut dyn Host, pair: u16) -> Result<usize, Unmoved> {
        let first = self.chains.get(self.next).map_or(0, |chain| chain.piece);
        #[allow(unsafe_code, reason = "receives to pinned memory")]
        // SAFETY:
        // 1. `self.hold` holds the memory of `self.pieces`, which is the list of it since it was taken; the last piece
        //    is `self.spill`, and `self` is borrowed until the call has ended.
        unsafe {
            host.receive(pair, &self.pieces.as_slice()[first..])
        }
    }

    /// Throws the next frame away; whether there was one.
    pub(super) fn discard(&mut self, host: &mut dyn Host, pair: u16) -> Result<bool, Broken> {
        self.clear();
        self.hold(2 * pair)?;
        let discarded = self.receive(host, pair);
        self.clear();
        match discarded {
            Ok(_) | Err(Unmoved::Frame(_)) => Ok(true),
            Err(Unmoved::NotYet) => Ok(false),
            Err(Unmoved::Gone(error)) => Err(gone(&error)),
        }
    }

    /// Uses chains for a frame of `bytes`: how many, and where their number goes.
    fn fill(&mut self, bytes: usize) -> (u16, [u64; 2]) {
        let (first, mut left) = (self.next, bytes as u64);
        for chain in &self.chains[first..] {
            if left == 0 {
                break;
            }
            let now = left.min(chain.bytes.into());
            left -= now;
            self.room -= u64::from(chain.bytes);
            self.used.push((chain.head, now as u32));
            self.next += 1;
        }
        ((self.next - first) as u16, self.chains[first].count)
    }

    /// Gives back what was not used.
    fn undo(&self, queue: &mut Queue) {
        self.chains[self.next..].iter().for_each(|_| queue.undo());
    }
}

/// The address of byte `at` of `segments`.
fn address(segments: &[Segment], mut at: u32) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let here = (at < segment.len).then(|| segment.addr.wrapping_add(at.into()));
        at = at.saturating_sub(segment.len);
        here
    })
}

/// Memory that is held cannot be written all the same.
fn unwritten(queue: u16, head: u16, error: &GuestMemoryError) -> Broken {
    let reason = format!("is a buffer that cannot be written: {error}");
    Broken::Request { queue, head, reason }
}

impl<D: Dma> Net<D> {
    /// Receives what is there for `pair`, until nothing is, or this turn is over, or the driver has no more buffers.
    pub(super) fn receive(&mut self, pair: u16, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        let queue = 2 * pair;
        let index = usize::from(queue);
        self.pairs[usize::from(pair)].starved = true;
        if !io.queues[index].is_ready() {
            return Ok(());
        }
        io.queues[index].mute(io.memory)?;
        let (mut turn, mut spare, mut told) = (TURN, SPARE, false);
        loop {
            if self.gather(queue, spare, io)? == Room::None {
                self.counts.starved += 1;
                break;
            }
            spare = (4 * spare).min(MOST_SPARE);
            let emptied = self.receive_batch(pair, &mut turn, io);
            self.batch.undo(&mut io.queues[index]);
            // The device's claim ends before the driver hears of it, and it hears of a frame's buffers together.
            let used = std::mem::take(&mut self.batch.used);
            self.batch.clear();
            let published = io.queues[index].add_used_together(io.memory, &used);
            told |= !used.is_empty();
            self.batch.used = used;
            let emptied = emptied?;
            published?;
            if emptied || turn == 0 {
                self.pairs[usize::from(pair)].starved = false;
                break;
            }
        }
        if told {
            io.signal(queue)?;
        }
        Ok(())
    }

    /// Receives frames to the batch until its room is less than a frame may need; whether there are no more.
    fn receive_batch(
        &mut self,
        pair: u16,
        turn: &mut u32,
        io: &mut Io<'_, '_, D>,
    ) -> Result<bool, Broken> {
        let first = self.batch.next;
        let mut lost = 0;
        while *turn > 0 && self.batch.next < self.batch.chains.len() {
            // The first frame has as much room as there is going to be.
            if self.batch.next > first && self.batch.room < self.batch.need {
                break;
            }
            let received = self.batch.receive(&mut *self.host, pair);
            let bytes = match received {
                Ok(bytes) => bytes,
                Err(Unmoved::NotYet) => return Ok(true),
                Err(Unmoved::Gone(error)) => return Err(gone(&error)),
                Err(Unmoved::Frame(error)) => {
                    *turn -= 1;
                    lost += 1;
                    self.counts.rx_dropped += 1;
                    if lost == TURN {
                        let what = format!("the interface cannot be read: {error}");
                        return Err(Broken::Host(what));
                    }
                    continue;
                }
            };
            *turn -= 1;
            let large = bytes > self.usual as usize;
            self.large = if large { LARGE_FOR } else { self.large.saturating_sub(1) };
            let spilled = (bytes as u64).saturating_sub(self.batch.room);
            if bytes < HEADER as usize || spilled > 0 && !self.fetch(pair, spilled as usize, io)? {
                self.counts.rx_dropped += 1;
                if spilled > 0 {
                    // What was taken for it is not held.
                    break;
                }
                continue;
            }
            let (buffers, count) = self.batch.fill(bytes);
            // What the interface leaves to the device: it does not know of merged buffers (5.1.6.4.1).
            for (byte, at) in buffers.to_le_bytes().into_iter().zip(count) {
                let written = io.memory.write_obj(byte, GuestAddress(at));
                let head = self.batch.used.last().map_or(0, |&(head, _)| head);
                written.map_err(|error| unwritten(2 * pair, head, &error))?;
            }
            self.counts.rx_packets += 1;
            self.counts.rx_bytes += bytes as u64 - u64::from(HEADER);
        }
        Ok(false)
    }

    /// Takes more chains for a frame of which so many bytes were spilled, and copies those; whether there were enough.
    fn fetch(&mut self, pair: u16, spilled: usize, io: &mut Io<'_, '_, D>) -> Result<bool, Broken> {
        let queue = 2 * pair;
        // One that fills all of it may have been cut off.
        if !self.accepted.mergeable() || spilled >= self.batch.spill.len() {
            return Ok(false);
        }
        let mut copied = 0;
        while copied < spilled {
            if !io.queues[usize::from(queue)].next(io.memory, &mut self.chain)? {
                return Ok(false);
            }
            self.batch.take(queue, &mut self.chain)?;
            for segment in &self.chain.writable {
                let now = (spilled - copied).min(segment.len as usize);
                let part = &self.batch.spill[copied..copied + now];
                let written = io.memory.write_slice(part, GuestAddress(segment.addr));
                written.map_err(|error| unwritten(queue, self.chain.head, &error))?;
                copied += now;
            }
        }
        self.counts.rx_spilled += 1;
        Ok(true)
    }

    /// Takes chains of `queue` for a frame, and `spare` more.
    fn gather(&mut self, queue: u16, spare: usize, io: &mut Io<'_, '_, D>) -> Result<Room, Broken> {
        let mergeable = self.accepted.mergeable();
        let largest = u64::from(self.largest);
        // Without merging a frame has one chain, whatever that holds.
        let expected = if self.large > 0 { largest } else { largest.min(self.usual.into()) };
        let mut need = if mergeable { expected } else { 1 };
        let ring = &mut io.queues[usize::from(queue)];
        let batch = &mut self.batch;
        batch.clear();
        // Chains that one frame may need, once they are there.
        let mut needed = 0;
        loop {
            let mut wanted = true;
            while wanted && ring.next(io.memory, &mut self.chain)? {
                batch.take(queue, &mut self.chain)?;
                // Chains are mostly of one size: those behind this one are guessed by it.
                if mergeable && need < largest && batch.chains.len() == 1 {
                    let guess = batch.room * (1 + u64::from(ring.waiting(io.memory)?));
                    need = if guess < largest { largest } else { need };
                }
                if batch.room >= need && needed == 0 {
                    needed = batch.chains.len();
                }
                let full = batch.segments.len() >= ENOUGH_SEGMENTS
                    || batch.room >= ENOUGH_BYTES
                    || !mergeable;
                wanted = !full && (needed == 0 || batch.chains.len() < needed + spare);
            }
            if !wanted || needed > 0 {
                break;
            }
            // Asked for with all of them taken: the next one is what makes the driver kick.
            if !ring.unmute(io.memory)? {
                // A driver that keeps half of its ring filled (Linux) is not going to bring more, however small they are.
                let all_there_is = 2 * batch.segments.len() >= usize::from(ring.state().size);
                if all_there_is && !batch.chains.is_empty() {
                    break;
                }
                batch.undo(ring);
                batch.clear();
                return Ok(Room::None);
            }
        }
        batch.need = need;
        batch.hold(queue)?;
        Ok(Room::There)
    }
}
