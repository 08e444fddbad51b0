//! A disk (virtio 1.2, section 5.2) over a file of the host.
//!
//! A request's buffers are pinned, the kernel moves data between the file and the pinned frames, and the pins end with the
//! request. Requests of one burst are handed to the kernel together; those that end at once (the file is in memory) are
//! answered in the same burst. One whose memory is still elsewhere is put aside, and the others go on.

mod aside;
pub mod host;
mod requests;
mod slots;
mod state;
#[cfg(test)]
mod tests;
pub mod wire;

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::epoll::EventSet;

use crate::dma::Dma;
use crate::virtio::model::{DeviceType, InFlight, Io, Model, Progress, Saved};
use crate::virtio::queue::{Broken, Chain};
use crate::virtio::rate::Limiter;
use crate::virtio::timer::Timer;
use crate::virtio::watch::Watch;

use aside::Aside;
use host::Host;
use slots::Slots;
use wire::{Asked, ID_BYTES, Shape};

/// Operations of the host have ended.
const ENDED: u32 = 0;
/// A request that was held up may go.
const TIME: u32 = 1;

/// What a disk counts.
#[derive(Debug, Default)]
struct Counts {
    reads: u64,
    writes: u64,
    bytes_read: u64,
    bytes_written: u64,
    others: u64,
    failed: u64,
}

/// A disk.
#[derive(Debug)]
pub struct Blk<D: Dma> {
    // Dropped before the slots: it waits for what is under way in their memory.
    host: Box<dyn Host>,
    slots: Slots<D::Hold>,
    aside: Aside,
    shape: Shape,
    id: [u8; ID_BYTES],
    /// What the driver accepted.
    features: u64,
    limiter: Limiter,
    timer: Timer,
    watching: bool,
    /// What time would let go waits for the driver's next kick.
    paused: bool,
    /// Queues whose next request waits for a slot or for time, a bit for each.
    held_up: u32,
    chain: Chain,
    asked: Asked,
    counts: Counts,
}

impl<D: Dma> Blk<D> {
    /// A disk of `shape` over `host`, which takes as many operations as the queues have descriptors; `id` is its name for
    /// the driver, of which 20 bytes are told.
    ///
    /// # Errors
    /// No timer is to be had.
    pub fn new(
        dma: &D,
        shape: Shape,
        id: &str,
        host: Box<dyn Host>,
        limiter: Limiter,
    ) -> io::Result<Blk<D>> {
        let mut name = [0; ID_BYTES];
        let len = id.len().min(ID_BYTES);
        name[..len].copy_from_slice(&id.as_bytes()[..len]);
        Ok(Blk {
            host,
            slots: Slots::new(dma, Self::depth(&shape)),
            aside: Aside::new(Self::depth(&shape)),
            shape,
            id: name,
            features: 0,
            limiter,
            timer: Timer::new()?,
            watching: false,
            paused: false,
            held_up: 0,
            chain: Chain::default(),
            asked: Asked::default(),
            counts: Counts::default(),
        })
    }

    /// Operations that a disk of `shape` has under way at most.
    pub fn depth(shape: &Shape) -> u32 {
        (u32::from(shape.queues) * u32::from(shape.queue_size)).min(1024)
    }
}

impl<D: Dma> Model<D> for Blk<D> {
    fn device_type(&self) -> DeviceType {
        DeviceType(VIRTIO_ID_BLOCK)
    }

    fn features(&self) -> u64 {
        self.shape.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.shape.queue_size; self.shape.queues.into()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.shape.config();
        let rest =
            usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or(&[]);
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn start(&mut self, features: u64, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        (self.features, self.paused) = (features, false);
        if self.watching {
            return Ok(());
        }
        let watch = |fd, token| {
            let added = io.watch.add(fd, token, EventSet::IN);
            added.map_err(|error| {
                Broken::Host(format!("the disk's events cannot be watched: {error}"))
            })
        };
        if let Some(event) = self.host.event() {
            watch(event, ENDED)?;
        }
        watch(self.timer.event(), TIME)?;
        self.watching = true;
        Ok(())
    }

    fn kicked(&mut self, queue: u16, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        self.serve(queue, io)
    }

    fn ready(&mut self, token: u32, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        match token {
            ENDED => self.host.quiet(),
            _ => self.timer.quiet(),
        }
        self.collect(io)?;
        if self.paused { Ok(()) } else { self.serve_held_up(io) }
    }

    fn in_flight(&self) -> Option<InFlight> {
        self.slots.in_flight()
    }

    fn pause(&mut self, _watch: &Watch) {
        self.paused = true;
    }

    /// Every queue is kicked behind this, those that were held up too.
    fn resume(&mut self, _watch: &Watch) {
        self.paused = false;
    }

    fn reset(&mut self, _watch: &Watch) {
        // What was begun has to end. If the kernel does not take it, it never was.
        let _ = self.host.submit();
        self.slots.orphan();
        self.aside.clear();
        (self.held_up, self.features) = (0, 0);
        self.timer.clear();
    }

    fn reap(&mut self) {
        let _ = self.host.submit();
        while let Some(ended) = self.host.reap() {
            if let Some(slot) = self.slots.take(ended.slot) {
                self.slots.free(slot);
            }
        }
    }

    fn save(&self) -> Saved {
        state::save(&self.shape, &self.aside)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), String> {
        state::restore(&self.shape, saved, &mut self.aside)
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("reads", self.counts.reads),
            ("writes", self.counts.writes),
            ("bytes_read", self.counts.bytes_read),
            ("bytes_written", self.counts.bytes_written),
            ("others", self.counts.others),
            ("failed", self.counts.failed),
            ("held_up", self.limiter.held_up()),
            ("put_aside", self.aside.count),
        ]
    }
}
