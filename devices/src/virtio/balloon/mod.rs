//! A memory balloon (virtio 1.2, section 5.5): the guest gives memory back to the host, by itself or because it is asked to.
//!
//! What it names is looked at as numbers and never as memory: pages in a balloon and free pages leave the guest's tables and
//! its pool at once, and whoever touches one finds zeroes. Which pages a guest names is its own affair. Those that are no
//! RAM, or not its alone, are counted and left as they are; only a request that is none breaks the device.

pub mod host;
mod pages;
mod state;
mod statistics;
#[cfg(test)]
mod tests;
pub mod wire;

use std::io;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vmm_sys_util::epoll::EventSet;

use crate::dma::{Dma, gather};
use crate::virtio::device::ConfigIs;
use crate::virtio::model::{DeviceType, Io, Model, Progress, Saved, TURN};
use crate::virtio::queue::{Broken, Chain};
use crate::virtio::timer::Timer;
use crate::virtio::watch::Watch;

use host::Reclaim;
use pages::{Pages, Way};
use state::State;
use statistics::{MOST, PAIR, Statistics};
use wire::{MOST_NAMED, MOST_REPORTED, NUMBER, Offer, QUEUE_SIZE, Role};

/// Statistics are wanted again.
const TIME: u32 = 0;

/// How a balloon begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pages of 4 KiB that the driver is asked for.
    pub target: u32,
    /// Whether the driver may take pages back when it has no others.
    pub deflate_on_oom: bool,
    /// Whether free pages may be reported.
    pub reporting: bool,
    /// How often statistics are wanted, if they are.
    pub statistics: Option<Duration>,
}

impl Shape {
    fn offer(&self) -> Offer {
        let Shape { deflate_on_oom, reporting, statistics, .. } = *self;
        Offer { deflate_on_oom, reporting, statistics: statistics.is_some() }
    }
}

/// A balloon.
#[derive(Debug)]
pub struct Balloon {
    pages: Pages,
    offer: Offer,
    /// Time between two statistics.
    period: Duration,
    state: State,
    /// What the driver accepted.
    features: u64,
    timer: Timer,
    watching: bool,
    /// There is a driver, and the device does not rest.
    running: bool,
    chain: Chain,
}

impl Balloon {
    /// A balloon of `shape` whose pages go to `host`.
    ///
    /// # Errors
    /// No timer is to be had.
    pub fn new(shape: Shape, host: Box<dyn Reclaim>) -> io::Result<Balloon> {
        Ok(Balloon {
            pages: Pages::new(host),
            offer: shape.offer(),
            period: shape.statistics.unwrap_or_default(),
            state: State { target: shape.target, ..State::default() },
            features: 0,
            timer: Timer::new()?,
            watching: false,
            running: false,
            chain: Chain::default(),
        })
    }

    /// The driver is asked for so many pages from now on: for [`super::device::Device::with`].
    pub fn set_target(&mut self, pages: u32) -> ConfigIs {
        if self.state.target == pages {
            return ConfigIs::Same;
        }
        self.state.target = pages;
        ConfigIs::New
    }

    /// Pages that the driver is asked for.
    pub fn target(&self) -> u32 {
        self.state.target
    }

    /// Pages that the driver says it has given.
    pub fn actual(&self) -> u32 {
        self.state.actual
    }

    /// Why the memory service did not take pages the last time that it failed.
    pub fn failure(&self) -> Option<&str> {
        self.pages.failure.as_deref()
    }

    /// What a driver told last of its memory, by name; nothing if none has.
    pub fn statistics(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.state.statistics.by_name()
    }

    /// Serves a queue of pages.
    fn serve<D: Dma>(
        &mut self,
        queue: u16,
        role: Role,
        io: &mut Io<'_, '_, D>,
    ) -> Result<Progress, Broken> {
        let index = usize::from(queue);
        let most = if role == Role::Reporting { MOST_REPORTED } else { MOST_NAMED };
        let (mut turn, mut left) = (TURN, most);
        let mut used = false;
        let progress = 'queue: loop {
            io.queues[index].mute(io.memory)?;
            while self.next(index, role, io)? {
                if turn == 0 || left == 0 {
                    io.queues[index].undo();
                    break 'queue Progress::More;
                }
                let pages = match role {
                    Role::Inflate => self.move_named(queue, Way::ToHost, io)?,
                    Role::Deflate => self.move_named(queue, Way::ToGuest, io)?,
                    Role::Reporting => self.report(queue)?,
                    Role::Statistics => 0,
                };
                turn -= 1;
                left = left.saturating_sub(pages);
                used = true;
                // Nothing of a buffer is written, least of all of one that is free memory.
                io.queues[index].add_used(io.memory, self.chain.head, 0)?;
            }
            if !io.queues[index].unmute(io.memory)? {
                break Progress::Done;
            }
        };
        if used {
            io.signal(queue)?;
        }
        Ok(progress)
    }

    /// Takes the next chain of queue `index`.
    fn next<D: Dma>(
        &mut self,
        index: usize,
        role: Role,
        io: &mut Io<'_, '_, D>,
    ) -> Result<bool, Broken> {
        let queue = &mut io.queues[index];
        match role {
            // Free memory: nobody fetches it for that.
            Role::Reporting => queue.next_named(io.memory, &mut self.chain),
            _ => queue.next(io.memory, &mut self.chain),
        }
    }

    fn malformed(&self, queue: u16, reason: impl Into<String>) -> Broken {
        Broken::Request { queue, head: self.chain.head, reason: reason.into() }
    }

    /// Moves the pages that the chain names; how many.
    fn move_named<D: Dma>(
        &mut self,
        queue: u16,
        way: Way,
        io: &Io<'_, '_, D>,
    ) -> Result<u64, Broken> {
        let (bytes, each) = (self.chain.readable_bytes(), NUMBER as u64);
        if !self.chain.writable.is_empty() || !bytes.is_multiple_of(each) {
            return Err(self.malformed(queue, "is no list of page numbers"));
        }
        let pages = bytes / each;
        if pages > MOST_NAMED {
            let reason = format!("names {pages} pages, of which there may be {MOST_NAMED}");
            return Err(self.malformed(queue, reason));
        }
        let moved = self.pages.move_named(&self.chain.readable, io.memory, way);
        moved.map_err(|source| Broken::Memory { queue, source })?;
        match way {
            Way::ToHost => self.pages.counts.inflated += pages,
            Way::ToGuest => self.pages.counts.deflated += pages,
        }
        Ok(pages)
    }

    /// Gives the pages to the host that the chain consists of; how many.
    fn report(&mut self, queue: u16) -> Result<u64, Broken> {
        if !self.chain.readable.is_empty() {
            return Err(self.malformed(queue, "reports memory to read"));
        }
        let mut left = MOST_REPORTED;
        for &segment in &self.chain.writable {
            let (first, pages) = wire::whole_pages(segment);
            let taken = pages.min(left);
            left -= taken;
            self.pages.counts.ignored += pages - taken;
            if taken > 0 {
                self.pages.move_run(first, taken, Way::ToHost);
            }
        }
        let reported = MOST_REPORTED - left;
        self.pages.counts.reported += reported;
        Ok(reported)
    }

    /// Takes a buffer of statistics, if there is one and none is held: it is given back when the next are wanted (5.5.6.3).
    fn take_statistics<D: Dma>(
        &mut self,
        queue: u16,
        io: &mut Io<'_, '_, D>,
    ) -> Result<(), Broken> {
        let index = usize::from(queue);
        if self.state.held.is_some() || !io.queues[index].next(io.memory, &mut self.chain)? {
            return Ok(());
        }
        let bytes = self.chain.readable_bytes();
        if !self.chain.writable.is_empty() || !bytes.is_multiple_of(PAIR as u64) {
            return Err(self.malformed(queue, "is no list of statistics"));
        }
        let mut pairs = [0; MOST];
        let filled = gather(io.memory, &self.chain.readable, &mut pairs)
            .map_err(|source| Broken::Memory { queue, source })?;
        self.state.statistics = Statistics::parse(&pairs[..filled]);
        self.state.held = Some(self.chain.head);
        self.pages.counts.statistics += 1;
        self.set_timer()?;
        // More than one is looked at when this one has been given back.
        io.queues[index].unmute(io.memory)?;
        Ok(())
    }

    /// Lets the timer go off when the buffer that is held is to be given back.
    fn set_timer(&self) -> Result<(), Broken> {
        if self.state.held.is_none() {
            return Ok(());
        }
        let set = self.timer.once(self.period);
        set.map_err(|error| Broken::Host(format!("the timer cannot be set: {error}")))
    }
}

impl<D: Dma> Model<D> for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType(VIRTIO_ID_BALLOON)
    }

    fn features(&self) -> u64 {
        self.offer.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.offer.queues()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = wire::config(self.state.target, self.state.actual);
        let rest =
            usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or(&[]);
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.state.actual = wire::written(self.state.actual, offset, data);
    }

    fn start(&mut self, features: u64, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        self.features = features;
        self.running = true;
        if !self.watching {
            io.watch.add(self.timer.event(), TIME, EventSet::IN).map_err(|error| {
                Broken::Host(format!("the balloon's timer cannot be watched: {error}"))
            })?;
            self.watching = true;
        }
        // Only one that was restored holds a buffer yet.
        self.set_timer()
    }

    fn kicked(&mut self, queue: u16, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        match wire::role(self.features, queue) {
            None => Ok(Progress::Done),
            Some(Role::Statistics) => self.take_statistics(queue, io).map(|()| Progress::Done),
            Some(role) => self.serve(queue, role, io),
        }
    }

    fn ready(&mut self, _token: u32, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        self.timer.quiet();
        let Some(queue) = wire::queue(self.features, Role::Statistics) else { return Ok(()) };
        // It went off, and then the device was told to rest.
        if !self.running {
            return Ok(());
        }
        if !io.queues[usize::from(queue)].has_rings() {
            // It has just come from elsewhere, and they have not: another time.
            return self.set_timer();
        }
        let Some(head) = self.state.held.take() else { return Ok(()) };
        io.queues[usize::from(queue)].add_used(io.memory, head, 0)?;
        io.signal(queue)?;
        self.take_statistics(queue, io)
    }

    fn pause(&mut self, _watch: &Watch) {
        self.running = false;
        self.timer.clear();
    }

    fn resume(&mut self, _watch: &Watch) {
        self.running = true;
        // If it cannot be set there are no more statistics, and all else works.
        let _ = self.set_timer();
    }

    fn reset(&mut self, _watch: &Watch) {
        self.running = false;
        self.timer.clear();
        // What the driver has given is its own again: it is filled when it is touched.
        (self.state.actual, self.state.held) = (0, None);
        self.features = 0;
    }

    fn save(&self) -> Saved {
        state::save(&self.state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), String> {
        self.state = state::restore(saved)?;
        Ok(())
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        let counts = &self.pages.counts;
        let mut stats = vec![
            ("target_pages", self.state.target.into()),
            ("actual_pages", self.state.actual.into()),
            ("inflated", counts.inflated),
            ("deflated", counts.deflated),
            ("reported", counts.reported),
            ("ignored", counts.ignored),
            ("went_to_host", counts.went),
            ("pinned", counts.pinned),
            ("shared", counts.shared),
            ("not_ram", counts.not_ram),
            ("shared_image", counts.image),
            ("cut", counts.cut),
            ("failed", counts.failed),
            ("statistics", counts.statistics),
        ];
        stats.extend(self.statistics());
        stats
    }
}
