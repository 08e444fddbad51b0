//! An entropy device (virtio 1.2, section 5.4) over a file of the host.
//!
//! The kernel writes the file's bytes into the pinned frames of the request. A file that gives nothing, or fails, gets no
//! answer for it: a guest that was told of no bytes might take what was in its buffer for random. It is asked again after a
//! while, and the guest waits.

pub mod host;
mod state;
#[cfg(test)]
mod tests;
pub mod wire;

use std::io;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::epoll::EventSet;

use crate::dma::{Dma, Transfer};
use crate::virtio::model::{DeviceType, Io, Model, Progress, Saved, TURN};
use crate::virtio::queue::{Broken, Chain};
use crate::virtio::rate::Limiter;
use crate::virtio::timer::Timer;
use crate::virtio::watch::{Interest, Watch};

use host::Source;
use wire::{MOST, QUEUE_SIZE, REQUESTS};

/// A request that was held up may go, or the source be asked again.
const TIME: u32 = 0;
/// Bytes of one turn.
const TURN_BYTES: u64 = 1 << 20;
/// After how long a source is asked again that gave nothing.
const RETRY: Duration = Duration::from_millis(100);

/// What an entropy device counts.
#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    bytes: u64,
    /// How often the source had nothing.
    dry: u64,
    /// How often it failed.
    failed: u64,
}

/// Whether requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// There is no driver, or the device rests.
    Still,
    Running,
    /// Until the timer goes off.
    HeldUp,
}

/// An entropy device.
#[derive(Debug)]
pub struct Rng<D: Dma> {
    source: Source,
    limiter: Limiter,
    timer: Timer,
    time: Interest,
    life: Life,
    transfer: Transfer<D::Hold>,
    chain: Chain,
    counts: Counts,
}

impl<D: Dma> Rng<D> {
    /// A device that gives what `source` does, `limiter` permitting.
    ///
    /// # Errors
    /// No timer is to be had.
    pub fn new(dma: &D, source: Source, limiter: Limiter) -> io::Result<Rng<D>> {
        Ok(Rng {
            source,
            limiter,
            timer: Timer::new()?,
            time: Interest::new(TIME),
            life: Life::Still,
            transfer: Transfer::new(dma.hold()),
            chain: Chain::default(),
            counts: Counts::default(),
        })
    }

    fn serve(&mut self, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        if self.life != Life::Running {
            return Ok(Progress::Done);
        }
        let queue = usize::from(REQUESTS);
        let (mut turn, mut left) = (TURN, TURN_BYTES);
        let mut used = false;
        let progress = 'queue: loop {
            io.queues[queue].mute(io.memory)?;
            while io.queues[queue].next(io.memory, &mut self.chain)? {
                if turn == 0 || left == 0 {
                    io.queues[queue].undo();
                    break 'queue Progress::More;
                }
                let Some(bytes) = self.answer()? else {
                    io.queues[queue].undo();
                    break 'queue Progress::Done;
                };
                turn -= 1;
                left = left.saturating_sub(bytes.into());
                used = true;
                io.queues[queue].add_used(io.memory, self.chain.head, bytes)?;
            }
            if !io.queues[queue].unmute(io.memory)? {
                break Progress::Done;
            }
        };
        if used {
            io.signal(REQUESTS)?;
        }
        Ok(progress)
    }

    /// Fills the request in `self.chain`: how many bytes it got. Nothing if it has to wait, for which the timer is set.
    fn answer(&mut self) -> Result<Option<u32>, Broken> {
        if !self.chain.readable.is_empty() {
            let reason = "has memory to read".into();
            return Err(Broken::Request { queue: REQUESTS, head: self.chain.head, reason });
        }
        let asked = self.chain.writable_bytes().min(MOST);
        if let Err(wait) = self.limiter.take(asked) {
            return self.wait(wait);
        }
        let read = self.transfer.read(self.source.file(), &self.chain.writable, 0, asked);
        match read.map_err(|source| Broken::Memory { queue: REQUESTS, source })? {
            Ok(bytes) if bytes > 0 => {
                self.counts.requests += 1;
                self.counts.bytes += bytes as u64;
                Ok(Some(bytes as u32))
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                self.counts.failed += 1;
                self.wait(RETRY)
            }
            _ => {
                self.counts.dry += 1;
                self.wait(RETRY)
            }
        }
    }

    fn wait(&mut self, time: Duration) -> Result<Option<u32>, Broken> {
        self.life = Life::HeldUp;
        let set = self.timer.once(time);
        set.map_err(|error| Broken::Host(format!("the timer cannot be set: {error}")))?;
        Ok(None)
    }

    fn be_still(&mut self) {
        self.life = Life::Still;
        self.timer.clear();
    }
}

impl<D: Dma> Model<D> for Rng<D> {
    fn device_type(&self) -> DeviceType {
        DeviceType(VIRTIO_ID_RNG)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn start(&mut self, _features: u64, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        let watched = self.time.set(io.watch, Some((self.timer.event(), EventSet::IN)));
        watched.map_err(|error| Broken::Host(format!("the timer cannot be watched: {error}")))?;
        self.life = Life::Running;
        Ok(())
    }

    fn kicked(&mut self, _queue: u16, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        self.serve(io)
    }

    fn ready(&mut self, _token: u32, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        self.timer.quiet();
        if self.life == Life::HeldUp {
            self.life = Life::Running;
            if self.serve(io)? == Progress::More {
                io.again(REQUESTS);
            }
        }
        Ok(())
    }

    fn pause(&mut self, _watch: &Watch) {
        self.be_still();
    }

    fn resume(&mut self, _watch: &Watch) {
        // A kick follows, and finds what was held up.
        self.life = Life::Running;
    }

    fn reset(&mut self, _watch: &Watch) {
        self.be_still();
    }

    fn save(&self) -> Saved {
        state::save()
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), String> {
        state::restore(saved)
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("requests", self.counts.requests),
            ("bytes", self.counts.bytes),
            ("dry", self.counts.dry),
            ("failed", self.counts.failed),
            ("held_up", self.limiter.held_up()),
        ]
    }
}
