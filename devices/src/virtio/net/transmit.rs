//! Frames from the driver to the host (virtio 1.2, 5.1.6.2).

use crate::dma::{Access, Dma, Hold};
use crate::virtio::model::{Io, Progress, TURN};
use crate::virtio::queue::Broken;

use super::host::Unmoved;
use super::wire::{HEADER, LARGEST_SENT};
use super::{Net, gone};

/// The most segments of a frame: more would be more pieces than a system call takes.
const MOST_SEGMENTS: usize = 512;

impl<D: Dma> Net<D> {
    /// Sends what is in the queue of `pair`, until it is empty, or this turn is over, or the host takes no more.
    pub(super) fn transmit(
        &mut self,
        pair: u16,
        io: &mut Io<'_, '_, D>,
    ) -> Result<Progress, Broken> {
        let queue = 2 * pair + 1;
        let index = usize::from(queue);
        self.pairs[usize::from(pair)].blocked = false;
        if !io.queues[index].is_ready() {
            return Ok(Progress::Done);
        }
        let mut turn = TURN;
        let progress = 'burst: loop {
            io.queues[index].mute(io.memory)?;
            while io.queues[index].next(io.memory, &mut self.chain)? {
                if !self.send(pair, queue)? {
                    io.queues[index].undo();
                    self.pairs[usize::from(pair)].blocked = true;
                    break 'burst Progress::Done;
                }
                io.queues[index].add_used(io.memory, self.chain.head, 0)?;
                turn -= 1;
                if turn == 0 {
                    break 'burst Progress::More;
                }
            }
            if !io.queues[index].unmute(io.memory)? {
                break Progress::Done;
            }
        };
        if turn < TURN {
            io.signal(queue)?;
        }
        Ok(progress)
    }

    /// Sends the frame in `self.chain`, or drops it; `false` if it has to wait.
    fn send(&mut self, pair: u16, queue: u16) -> Result<bool, Broken> {
        let bytes = self.chain.readable_bytes();
        let bad = |reason: &str| {
            Err(Broken::Request { queue, head: self.chain.head, reason: reason.into() })
        };
        if !self.chain.writable.is_empty() {
            return bad("is a frame to send with memory to write");
        }
        if bytes < HEADER.into() {
            return bad("is a frame without a whole header");
        }
        if bytes > LARGEST_SENT || self.chain.readable.len() > MOST_SEGMENTS {
            self.counts.tx_dropped += 1;
            return Ok(true);
        }
        let held = self.hold.take(&self.chain.readable, Access::Read);
        held.map_err(|source| Broken::Memory { queue, source })?;
        self.hold.list(&mut self.buffers);
        #[allow(unsafe_code, reason = "sends pinned memory")]
        // SAFETY:
        // 1. `self.hold` holds the memory of `self.buffers`, until it is released below.
        let sent = unsafe { self.host.send(pair, self.buffers.as_slice()) };
        // The device's claim ends before the driver hears of it.
        self.hold.release();
        self.buffers.clear();
        match sent {
            Ok(()) => {
                self.counts.tx_packets += 1;
                self.counts.tx_bytes += bytes - u64::from(HEADER);
            }
            Err(Unmoved::NotYet) => return Ok(false),
            Err(Unmoved::Frame(_)) => self.counts.tx_dropped += 1,
            Err(Unmoved::Gone(error)) => return Err(gone(&error)),
        }
        Ok(true)
    }
}
