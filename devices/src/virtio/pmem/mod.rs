//! Persistent memory (virtio 1.2, section 5.19): a file as memory of the guest's.
//!
//! The memory itself is RAM that begins as an image of the file, and the device has no part in it: it says where the memory is,
//! and answers requests to make stores last.

pub mod host;
mod state;
#[cfg(test)]
mod tests;
pub mod wire;

use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;

use crate::dma::{Dma, DmaError, gather, scatter};
use crate::virtio::model::{DeviceType, Io, Model, Progress, Saved, TURN};
use crate::virtio::queue::{Broken, Chain};
use crate::virtio::watch::Watch;

use host::Store;
use wire::{FAILED, FLUSH, OK, QUEUE_SIZE, REQUESTS, Region, WORD};

/// What persistent memory counts.
#[derive(Debug, Default)]
struct Counts {
    flushes: u64,
    failed: u64,
    /// Requests that this device does not know.
    unknown: u64,
}

/// Persistent memory.
#[derive(Debug)]
pub struct Pmem {
    region: Region,
    store: Box<dyn Store>,
    chain: Chain,
    counts: Counts,
}

impl Pmem {
    /// Memory at `region`, whose stores `store` makes last.
    pub fn new(region: Region, store: Box<dyn Store>) -> Pmem {
        Pmem { region, store, chain: Chain::default(), counts: Counts::default() }
    }

    /// Answers the request in `self.chain`: how many bytes were written.
    fn answer<D: Dma>(&mut self, io: &Io<'_, '_, D>) -> Result<u32, Broken> {
        let unusable = |source: DmaError| Broken::Memory { queue: REQUESTS, source };
        if self.chain.readable_bytes() != WORD || self.chain.writable_bytes() != WORD {
            let reason = "is not a word and room for another".into();
            return Err(Broken::Request { queue: REQUESTS, head: self.chain.head, reason });
        }
        let mut kind = [0; WORD as usize];
        gather(io.memory, &self.chain.readable, &mut kind).map_err(unusable)?;
        let answer = match u32::from_le_bytes(kind) {
            FLUSH => {
                self.counts.flushes += 1;
                match self.store.flush() {
                    Ok(()) => OK,
                    Err(_) => {
                        self.counts.failed += 1;
                        FAILED
                    }
                }
            }
            _ => {
                self.counts.unknown += 1;
                FAILED
            }
        };
        scatter(io.memory, &self.chain.writable, &answer.to_le_bytes()).map_err(unusable)?;
        Ok(WORD as u32)
    }
}

impl<D: Dma> Model<D> for Pmem {
    fn device_type(&self) -> DeviceType {
        DeviceType(VIRTIO_ID_PMEM)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.region.config();
        let rest =
            usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or(&[]);
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn start(&mut self, _features: u64, _io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        Ok(())
    }

    fn kicked(&mut self, _queue: u16, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        let queue = usize::from(REQUESTS);
        let mut turn = TURN;
        let mut used = false;
        let progress = 'queue: loop {
            io.queues[queue].mute(io.memory)?;
            while io.queues[queue].next(io.memory, &mut self.chain)? {
                if turn == 0 {
                    io.queues[queue].undo();
                    break 'queue Progress::More;
                }
                turn -= 1;
                let written = self.answer(io)?;
                used = true;
                io.queues[queue].add_used(io.memory, self.chain.head, written)?;
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

    fn reset(&mut self, _watch: &Watch) {}

    fn save(&self) -> Saved {
        state::save(self.region)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), String> {
        state::restore(self.region, saved)
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("flushes", self.counts.flushes),
            ("failed", self.counts.failed),
            ("unknown", self.counts.unknown),
        ]
    }
}
