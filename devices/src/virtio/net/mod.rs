//! A network device (virtio 1.2, section 5.1) over an interface of the host.
//!
//! A frame's buffers are pinned, and one system call moves it between them and the interface: with its header, as it is.
//! Frames of one burst are told of together. The interface is watched only while the driver has buffers for what comes,
//! so a guest that is slow, or hostile, costs no wakes.

mod control;
pub mod host;
mod receive;
mod state;
#[cfg(test)]
mod tests;
mod transmit;
pub mod wire;

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use vmm_sys_util::epoll::EventSet;

use crate::dma::{Dma, Hold, Iovecs};
use crate::virtio::model::{DeviceType, Io, Model, Progress, Saved};
use crate::virtio::queue::{Broken, Chain};
use crate::virtio::watch::Watch;

use host::Host;
use receive::Batch;
use state::State;
use wire::{Accepted, CONTROL_SIZE, MAX_PAIRS, Mac, Shape};

/// The MTU of an interface that says nothing of it.
const USUAL_MTU: u16 = 1500;

/// How a network device is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its address, until the driver sets another.
    pub mac: Mac,
    /// Pairs of queues, as many as its host has.
    pub queues: u16,
    /// Entries of each, a power of two.
    pub queue_size: u16,
    /// Whether guest and host may leave checksums and the cutting of segments to each other.
    pub offloads: bool,
}

/// What a network device counts.
#[derive(Debug, Default)]
struct Counts {
    rx_packets: u64,
    rx_bytes: u64,
    /// Frames from the host that were lost: too large for the driver's buffers, or not to be read.
    rx_dropped: u64,
    tx_packets: u64,
    tx_bytes: u64,
    /// Large frames that nobody expected: a part of each was copied.
    rx_spilled: u64,
    /// Frames of the driver that the host did not take.
    tx_dropped: u64,
    commands: u64,
    commands_refused: u64,
    /// How often an interface woke the thread.
    wakes: u64,
    /// How often frames had to wait for buffers.
    starved: u64,
}

/// What a pair of queues waits for.
#[derive(Clone, Copy, Debug)]
struct Pair {
    /// There are no buffers for frames from the host: nobody looks for any until the driver kicks.
    starved: bool,
    /// The host took no more frames: the rest waits until it does.
    blocked: bool,
    /// What is watched.
    watched: EventSet,
}

const AT_FIRST: Pair = Pair { starved: true, blocked: false, watched: EventSet::empty() };

/// A network device.
#[derive(Debug)]
pub struct Net<D: Dma> {
    host: Box<dyn Host>,
    config: Config,
    shape: Shape,
    /// As the driver has set it.
    mac: Mac,
    accepted: Accepted,
    /// The most bytes of a frame from the host.
    largest: u32,
    /// The most of one that was not put together of several.
    usual: u32,
    /// Frames from now on that are expected to be as large as there are.
    large: u32,
    /// By number.
    pairs: Vec<Pair>,
    /// The first of them are in use.
    used_pairs: u16,
    running: bool,
    paused: bool,
    /// It was restored, and has not started since: what has arrived is for this driver.
    restored: bool,
    batch: Batch<D::Hold>,
    hold: D::Hold,
    buffers: Iovecs,
    chain: Chain,
    counts: Counts,
}

impl<D: Dma> Net<D> {
    /// A network device as `config` says, over `host`.
    ///
    /// # Errors
    /// `InvalidInput` if `host` has another number of queues, or `config` asks for what no device has.
    pub fn new(dma: &D, config: Config, host: Box<dyn Host>) -> io::Result<Net<D>> {
        let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        let Config { mac, queues, queue_size, offloads } = config;
        if !(1..=MAX_PAIRS).contains(&queues) || queues != host.pairs() {
            let there = host.pairs();
            return refuse(format!("{queues} pairs of queues over an interface of {there}"));
        }
        if !queue_size.is_power_of_two() || queue_size > 1 << 15 {
            return refuse(format!("queues of {queue_size} entries: not a power of two to 32768"));
        }
        if mac[0] & 1 != 0 {
            return refuse(format!("an address of a group: {mac:02x?}"));
        }
        let offloads = if offloads { host.offloads() } else { host::Offloads::default() };
        Ok(Net {
            config,
            shape: Shape { pairs: queues, offloads, mtu: host.mtu() },
            host,
            mac,
            accepted: Accepted::default(),
            largest: 0,
            usual: 0,
            large: 0,
            pairs: vec![AT_FIRST; queues.into()],
            used_pairs: 1,
            running: false,
            paused: false,
            restored: false,
            batch: Batch::new(dma),
            hold: dma.hold(),
            buffers: Iovecs::default(),
            chain: Chain::default(),
            counts: Counts::default(),
        })
    }

    /// Watches of `pair` what it waits for, and no more.
    fn watch(&mut self, pair: u16, watch: &Watch) -> io::Result<()> {
        let Pair { starved, blocked, watched } = self.pairs[usize::from(pair)];
        let mut wanted = EventSet::empty();
        if self.running && !self.paused && pair < self.used_pairs {
            wanted.set(EventSet::IN, !starved);
            wanted.set(EventSet::OUT, blocked);
        }
        if wanted == watched {
            return Ok(());
        }
        let fd = self.host.event(pair);
        let token = pair.into();
        match (watched.is_empty(), wanted.is_empty()) {
            (true, _) => watch.add(fd, token, wanted)?,
            // Level-triggered, and errors are always told of: what is wanted for nothing is not watched at all.
            (false, true) => watch.remove(fd)?,
            (false, false) => watch.modify(fd, token, wanted)?,
        }
        self.pairs[usize::from(pair)].watched = wanted;
        Ok(())
    }

    fn watch_all(&mut self, watch: &Watch) -> io::Result<()> {
        (0..self.shape.pairs).try_for_each(|pair| self.watch(pair, watch))
    }

    /// As [`Net::watch`], during a burst.
    fn watch_in(&mut self, pair: u16, io: &Io<'_, '_, D>) -> Result<(), Broken> {
        self.watch(pair, io.watch).map_err(|error| unwatched(&error))
    }

    /// Frames that nobody was there for are not for this driver, and may be as it cannot take them.
    fn discard_stale(&mut self) -> Result<(), Broken> {
        /// More than an interface keeps.
        const MOST: u32 = 4096;
        for pair in 0..self.shape.pairs {
            let mut left = MOST;
            while left > 0 && self.batch.discard(&mut *self.host, pair)? {
                left -= 1;
            }
        }
        Ok(())
    }
}

fn unwatched(error: &io::Error) -> Broken {
    Broken::Host(format!("the interface's events cannot be watched: {error}"))
}

/// The interface has gone.
fn gone(error: &io::Error) -> Broken {
    Broken::Host(format!("the interface has gone: {error}"))
}

impl<D: Dma> Model<D> for Net<D> {
    fn device_type(&self) -> DeviceType {
        DeviceType(VIRTIO_ID_NET)
    }

    fn features(&self) -> u64 {
        self.shape.features()
    }

    /// A pair after the other, what is received first; then the control queue (5.1.2).
    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![self.config.queue_size; 2 * usize::from(self.shape.pairs)];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.shape.config(self.mac, self.host.is_link_up());
        let rest =
            usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or(&[]);
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn start(&mut self, features: u64, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        self.accepted = Accepted(features);
        let mtu = self.host.mtu().unwrap_or(USUAL_MTU);
        self.largest = self.accepted.largest_received(mtu);
        (self.usual, self.large) = (wire::on_the_wire(mtu), 0);
        let cannot =
            |error| Broken::Host(format!("the interface cannot be set up for the driver: {error}"));
        self.host.use_pairs(self.used_pairs).map_err(cannot)?;
        let offloads = self.accepted.offloads();
        self.host.leave(offloads).map_err(cannot)?;
        if !std::mem::take(&mut self.restored) && !self.running {
            self.discard_stale()?;
        }
        (self.running, self.paused) = (true, false);
        self.watch_all(io.watch).map_err(|error| unwatched(&error))
    }

    fn kicked(&mut self, queue: u16, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        if !self.running || self.paused {
            return Ok(Progress::Done);
        }
        if self.accepted.control_queue(self.shape.pairs) == Some(queue) {
            return self.command(queue, io);
        }
        let pair = queue / 2;
        if pair >= self.used_pairs {
            return Ok(Progress::Done);
        }
        let Pair { starved, blocked, .. } = self.pairs[usize::from(pair)];
        match queue % 2 {
            0 if starved => {
                self.receive(pair, io)?;
                // What is left wakes the thread by itself.
                self.watch_in(pair, io)?;
                Ok(Progress::Done)
            }
            1 if !blocked => {
                let progress = self.transmit(pair, io)?;
                self.watch_in(pair, io)?;
                Ok(progress)
            }
            _ => Ok(Progress::Done),
        }
    }

    fn ready(&mut self, token: u32, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        self.counts.wakes += 1;
        let Some(pair) = u16::try_from(token).ok().filter(|&pair| pair < self.used_pairs) else {
            return Ok(());
        };
        if !self.running || self.paused {
            return Ok(());
        }
        if !self.pairs[usize::from(pair)].starved {
            self.receive(pair, io)?;
        }
        if self.pairs[usize::from(pair)].blocked && self.transmit(pair, io)? == Progress::More {
            // It is still watched for room, which is there: the thread comes back when others had their turn.
            self.pairs[usize::from(pair)].blocked = true;
        }
        self.watch_in(pair, io)
    }

    fn pause(&mut self, watch: &Watch) {
        self.paused = true;
        // A file that is still watched wakes the thread, which then leaves it.
        let _ = self.watch_all(watch);
    }

    fn resume(&mut self, watch: &Watch) {
        self.paused = false;
        // The kicks that follow try again, and tell.
        let _ = self.watch_all(watch);
    }

    fn reset(&mut self, watch: &Watch) {
        self.running = false;
        let _ = self.watch_all(watch);
        for pair in &mut self.pairs {
            *pair = Pair { watched: pair.watched, ..AT_FIRST };
        }
        self.batch.clear();
        self.hold.release();
        self.accepted = Accepted::default();
        (self.mac, self.used_pairs, self.restored) = (self.config.mac, 1, false);
    }

    fn save(&self) -> Saved {
        state::save(&State { mac: self.mac, pairs: self.used_pairs, mtu: self.shape.mtu })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), String> {
        let State { mac, pairs, mtu } = state::restore(&self.shape, saved)?;
        (self.mac, self.used_pairs, self.restored) = (mac, pairs, true);
        // Its driver goes by what it was told.
        self.shape.mtu = mtu.or(self.shape.mtu);
        Ok(())
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("rx_packets", self.counts.rx_packets),
            ("rx_bytes", self.counts.rx_bytes),
            ("rx_dropped", self.counts.rx_dropped),
            ("rx_spilled", self.counts.rx_spilled),
            ("tx_packets", self.counts.tx_packets),
            ("tx_bytes", self.counts.tx_bytes),
            ("tx_dropped", self.counts.tx_dropped),
            ("commands", self.counts.commands),
            ("commands_refused", self.counts.commands_refused),
            ("wakes", self.counts.wakes),
            ("starved", self.counts.starved),
        ]
    }
}
