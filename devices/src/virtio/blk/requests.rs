//! A request from the queue to its answer.

use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::dma::{Access, Dma, DmaError, Hold, Segment, gather, scatter};
use crate::virtio::model::{Io, Progress, TURN};
use crate::virtio::queue::{Broken, Taken as Found};

use super::Blk;
use super::host::Operation;
use super::slots::Slot;
use super::wire::{Kind, MAX_RANGE_SECTORS, MAX_RANGES, RANGE_BYTES, Range, SECTOR, Status};

/// What became of a request that was taken from its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// It was begun, or answered.
    Begun,
    /// It waits for its rate: it has to go back to where it was.
    HeldUp,
}

/// Where the request in a disk's `chain` was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Queue,
    Aside,
}

impl<D: Dma> Blk<D> {
    /// Takes what is in `queue`, until it is empty, or this turn is over, or something is to be waited for.
    pub(super) fn serve(&mut self, queue: u16, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        let now = Instant::now();
        let index = usize::from(queue);
        self.held_up &= !(1 << queue);
        let mut turn = TURN;
        loop {
            io.queues[index].mute(io.memory)?;
            while turn > 0 {
                if self.slots.is_full() {
                    self.collect(io)?;
                }
                if self.slots.is_full() {
                    self.held_up |= 1 << queue;
                    break;
                }
                let Some(origin) = self.next(queue, &mut turn, io)? else { break };
                if self.take(queue, now, io)? == Taken::HeldUp {
                    match origin {
                        Origin::Queue => io.queues[index].undo(),
                        Origin::Aside => {
                            self.aside.put_back(queue, std::mem::take(&mut self.chain));
                        }
                    }
                    self.held_up |= 1 << queue;
                    break;
                }
                turn = turn.saturating_sub(1);
            }
            self.collect(io)?;
            if turn == 0 {
                return Ok(Progress::More);
            }
            if self.held_up & 1 << queue != 0 || !io.queues[index].unmute(io.memory)? {
                return Ok(Progress::Done);
            }
        }
    }

    /// Finds the next request whose memory is here for `self.chain`; those that it is not here for are put aside, as far as
    /// `turn` lasts.
    fn next(
        &mut self,
        queue: u16,
        turn: &mut u32,
        io: &mut Io<'_, '_, D>,
    ) -> Result<Option<Origin>, Broken> {
        let ring = &mut io.queues[usize::from(queue)];
        if let Some(chain) = self.aside.take(ring) {
            self.chain = chain;
            return Ok(Some(Origin::Aside));
        }
        while *turn > 0 && !self.aside.is_full() {
            match ring.take(io.memory, &mut self.chain)? {
                Found::Nothing => return Ok(None),
                Found::Here => return Ok(Some(Origin::Queue)),
                Found::Coming(wait) => {
                    self.aside.put(queue, std::mem::take(&mut self.chain), wait);
                    *turn -= 1;
                }
            }
        }
        // Behind one that is not here, the others wait for it now.
        let found = *turn > 0 && ring.next(io.memory, &mut self.chain)?;
        Ok(found.then_some(Origin::Queue))
    }

    /// Begins the request in `self.chain`, or answers it, if it need not wait.
    fn take(&mut self, queue: u16, now: Instant, io: &mut Io<'_, '_, D>) -> Result<Taken, Broken> {
        let head = self.chain.head;
        self.asked.parse(queue, &self.chain, io.memory)?;
        if let Err(wait) = self.limiter.take(self.asked.bytes()) {
            self.wake_in(wait)?;
            return Ok(Taken::HeldUp);
        }
        let mut slot = self.slots.get(queue, head, self.asked.status, now);
        match self.begin(&mut slot, io) {
            Ok(None) => self.slots.put(slot),
            Ok(Some(status)) => self.answer(slot, status, io)?,
            Err(error) => {
                self.slots.free(slot);
                return Err(error);
            }
        }
        Ok(Taken::Begun)
    }

    /// Begins `self.asked` in `slot`; or its answer, if there is nothing to wait for.
    fn begin(
        &mut self,
        slot: &mut Slot<D::Hold>,
        io: &mut Io<'_, '_, D>,
    ) -> Result<Option<Status>, Broken> {
        let accepted = |bit: u32| self.features & 1 << bit != 0;
        let kind = self.asked.kind();
        match kind {
            Kind::In => self.transfer(slot, Operation::Read),
            Kind::Out if self.shape.read_only => Ok(Some(Status::IoError)),
            // Who does not know of flushes believes that what was written lasts (5.2.6.2).
            Kind::Out => {
                let through = !accepted(VIRTIO_BLK_F_FLUSH);
                self.transfer(slot, Operation::Write { through })
            }
            Kind::Flush => {
                self.counts.others += 1;
                self.start(slot, Operation::Sync, 0)
            }
            Kind::Discard if accepted(VIRTIO_BLK_F_DISCARD) => self.ranges(slot, kind, io),
            Kind::WriteZeroes if accepted(VIRTIO_BLK_F_WRITE_ZEROES) => self.ranges(slot, kind, io),
            Kind::GetId => {
                self.counts.others += 1;
                let written = scatter(io.memory, &self.asked.sink, &self.id);
                slot.moved = written.map_err(|source| unusable(slot.queue, source))? as u32;
                Ok(Some(Status::Ok))
            }
            Kind::Discard | Kind::WriteZeroes | Kind::Unknown(_) => Ok(Some(Status::Unsupported)),
        }
    }

    /// Begins to move data.
    fn transfer(
        &mut self,
        slot: &mut Slot<D::Hold>,
        operation: Operation,
    ) -> Result<Option<Status>, Broken> {
        let (segments, access): (&[Segment], _) = match operation {
            Operation::Read => (&self.asked.sink, Access::Write),
            _ => (&self.asked.source, Access::Read),
        };
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
        let fits = self
            .asked
            .sector
            .checked_add(bytes / SECTOR)
            .is_some_and(|end| end <= self.shape.sectors);
        if !bytes.is_multiple_of(SECTOR) || !fits {
            return Ok(Some(Status::IoError));
        }
        if bytes == 0 {
            return Ok(Some(Status::Ok));
        }
        let queue = slot.queue;
        slot.hold.take(segments, access).map_err(|source| unusable(queue, source))?;
        slot.hold.list(&mut slot.buffers);
        if operation == Operation::Read {
            self.counts.reads += 1;
            self.counts.bytes_read += bytes;
            slot.moved = bytes as u32;
        } else {
            self.counts.writes += 1;
            self.counts.bytes_written += bytes;
        }
        self.start(slot, operation, self.asked.sector * SECTOR)
    }

    /// Begins to discard or zero ranges, one after the other.
    fn ranges(
        &mut self,
        slot: &mut Slot<D::Hold>,
        kind: Kind,
        io: &mut Io<'_, '_, D>,
    ) -> Result<Option<Status>, Broken> {
        self.counts.others += 1;
        let bytes: u64 = self.asked.source.iter().map(|segment| u64::from(segment.len)).sum();
        let most = u64::from(MAX_RANGES) * RANGE_BYTES;
        if self.shape.read_only || bytes == 0 || bytes > most || !bytes.is_multiple_of(RANGE_BYTES)
        {
            return Ok(Some(Status::IoError));
        }
        let mut text = [0; MAX_RANGES as usize * RANGE_BYTES as usize];
        let text = &mut text[..bytes as usize];
        gather(io.memory, &self.asked.source, text)
            .map_err(|source| unusable(slot.queue, source))?;
        for range in text.as_chunks::<{ RANGE_BYTES as usize }>().0 {
            let Some(range) = Range::parse(*range, kind) else {
                return Ok(Some(Status::Unsupported));
            };
            let fits = range
                .sector
                .checked_add(range.sectors.into())
                .is_some_and(|end| end <= self.shape.sectors);
            if !fits || range.sectors > MAX_RANGE_SECTORS {
                return Ok(Some(Status::IoError));
            }
            if range.sectors > 0 {
                slot.ranges.push(range);
            }
        }
        self.next_range(slot)
    }

    /// Begins the next range of `slot`.
    fn next_range(&mut self, slot: &mut Slot<D::Hold>) -> Result<Option<Status>, Broken> {
        let Some(range) = slot.ranges.pop() else { return Ok(Some(Status::Ok)) };
        let len = u64::from(range.sectors) * SECTOR;
        let operation =
            if range.unmap { Operation::Punch { len } } else { Operation::Zero { len } };
        self.start(slot, operation, range.sector * SECTOR)
    }

    fn start(
        &mut self,
        slot: &mut Slot<D::Hold>,
        operation: Operation,
        offset: u64,
    ) -> Result<Option<Status>, Broken> {
        (slot.operation, slot.offset) = (operation, offset);
        #[allow(unsafe_code, reason = "hands pinned memory to the host's file")]
        // SAFETY:
        // 1. `slot.hold` holds the memory of `slot.buffers`; a slot is freed only when its operation was reaped
        //    (`collect`), and dropped behind `self.host`. The list itself is on the heap, and is changed only when
        //    nothing is under way in its slot.
        let begun =
            unsafe { self.host.begin(slot.number, operation, offset, slot.buffers.at_once()) };
        match begun {
            Ok(()) => Ok(None),
            Err(error) => Err(Broken::Host(format!("the disk's file cannot be used: {error}"))),
        }
    }

    /// Hands over what was begun, and answers what has ended.
    pub(super) fn collect(&mut self, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        let mut signals = 0_u32;
        loop {
            let submitted = self.host.submit();
            submitted.map_err(|error| {
                Broken::Host(format!("the disk's file cannot be used: {error}"))
            })?;
            let mut again = false;
            while let Some(ended) = self.host.reap() {
                let Some(mut slot) = self.slots.take(ended.slot) else { continue };
                if slot.orphan {
                    self.slots.free(slot);
                    continue;
                }
                let end = match self.end(&mut slot, ended.result) {
                    Ok(end) => end,
                    Err(error) => {
                        self.slots.free(slot);
                        return Err(error);
                    }
                };
                match end {
                    None => {
                        self.slots.put(slot);
                        again = true;
                    }
                    Some(status) => {
                        signals |= 1 << slot.queue;
                        self.answer(slot, status, io)?;
                    }
                }
            }
            if !again {
                break;
            }
        }
        signals |= std::mem::take(&mut self.slots.answered);
        for queue in (0..self.shape.queues).filter(|queue| signals & 1 << queue != 0) {
            io.signal(queue)?;
        }
        Ok(())
    }

    /// What the operation of `slot` ended with; nothing if it goes on.
    fn end(&mut self, slot: &mut Slot<D::Hold>, result: i32) -> Result<Option<Status>, Broken> {
        match slot.operation {
            Operation::Read | Operation::Write { .. } => {
                let left = slot.buffers.bytes();
                match usize::try_from(result) {
                    // The file has become shorter.
                    Ok(0) | Err(_) => Ok(Some(Status::IoError)),
                    Ok(moved) if moved < left => {
                        slot.buffers.advance(moved);
                        self.start(slot, slot.operation, slot.offset + moved as u64)
                    }
                    Ok(_) => Ok(Some(Status::Ok)),
                }
            }
            Operation::Sync => Ok(Some(if result < 0 { Status::IoError } else { Status::Ok })),
            Operation::Punch { .. } | Operation::Zero { .. } => match -result {
                0 => self.next_range(slot),
                libc::EOPNOTSUPP | libc::ENOSYS => Ok(Some(Status::Unsupported)),
                _ => Ok(Some(Status::IoError)),
            },
        }
    }

    /// Tells the driver of the end of `slot`'s request.
    fn answer(
        &mut self,
        slot: Slot<D::Hold>,
        status: Status,
        io: &mut Io<'_, '_, D>,
    ) -> Result<(), Broken> {
        if status != Status::Ok {
            self.counts.failed += 1;
        }
        let (queue, head, moved) = (slot.queue, slot.head, slot.moved);
        let place = Segment { addr: slot.status, len: 1 };
        let written = scatter(io.memory, &[place], &[status as u8]);
        // The device's claim ends before the driver hears of it.
        self.slots.free(slot);
        written.map_err(|source| unusable(queue, source))?;
        self.slots.answered |= 1 << queue;
        io.queues[usize::from(queue)].add_used(io.memory, head, moved + 1)
    }

    fn wake_in(&mut self, wait: Duration) -> Result<(), Broken> {
        let set = self.timer.once(wait);
        set.map_err(|error| {
            Broken::Host(format!("the rate limiter's timer cannot be set: {error}"))
        })
    }

    /// Serves the queues that were held up.
    pub(super) fn serve_held_up(&mut self, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        for queue in (0..self.shape.queues)
            .filter(|queue| self.held_up & 1 << queue != 0)
            .collect::<Vec<_>>()
        {
            if self.serve(queue, io)? == Progress::More {
                io.again(queue);
            }
        }
        Ok(())
    }
}

/// Memory of a request cannot be used.
fn unusable(queue: u16, source: DmaError) -> Broken {
    Broken::Memory { queue, source }
}
