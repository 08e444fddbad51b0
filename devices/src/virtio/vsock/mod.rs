//! A socket device (virtio 1.2, section 5.10): streams between the guest and Unix sockets of the host.
//!
//! Data goes from the socket to the guest's pinned buffers, and back, by one system call. What a socket does not take waits
//! here, at most as much as the guest was told there is room for; so one connection never waits for another. What goes to
//! the guest waits in its socket until the guest has buffers, and room in the connection.
//!
//! ```text
//!  F3  from_guest                packets that the guest sent
//!      sockets                   what happens at the host's sockets
//!  F2  to_guest                  packets for the guest, of all connections in turn
//!  F1  table                     the connections
//!  F0  connection  host  wire    one of them; Unix sockets; formats
//! ```

mod connection;
mod from_guest;
pub mod host;
mod sockets;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod to_guest;
pub mod wire;

use std::collections::VecDeque;
use std::os::fd::AsRawFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::EventSet;

use crate::dma::{Dma, Transfer};
use crate::virtio::model::{DeviceType, Io, Model, Progress, Saved};
use crate::virtio::queue::{Broken, Chain};
use crate::virtio::watch::{Interest, Watch};

use connection::Ports;
use host::Host;
use table::Table;
use wire::{F_STREAM, QUEUE_SIZES, RX, TX};

pub use connection::BUFFER;
pub use table::{CONNECTIONS, FIRST_PORT};

/// A program of the host connects.
const DOOR: u32 = 0;
/// The first connection's stream.
const STREAMS: u32 = 1;

/// What a socket device counts.
#[derive(Debug, Default)]
struct Counts {
    /// Connections that the guest made, and programs of the host.
    by_guest: u64,
    by_host: u64,
    /// Connections that could not be made.
    refused: u64,
    bytes_from_guest: u64,
    bytes_to_guest: u64,
    /// Packets that made no sense, and were answered with a reset.
    resets: u64,
    /// Packets from or to others than this guest and the host.
    ignored: u64,
    /// Errors of the host.
    failed: u64,
}

/// Whether a driver is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// There is none.
    Idle,
    Running,
    Paused,
}

/// A `RST` that the guest is to get: for which ports, and of which type.
type Reset = (Ports, u16);

/// A socket device.
#[derive(Debug)]
pub struct Vsock<D: Dma> {
    door: Interest,
    host: Host,
    cid: u32,
    table: Table,
    /// Bounded by what is sent for packets, and by the connections.
    resets: VecDeque<Reset>,
    /// The guest has no buffers for packets.
    starved: bool,
    /// The guest's packets wait until answers to those before them have gone.
    held_up: bool,
    /// The guest is to hear that its connections are gone.
    transport_lost: bool,
    life: Life,
    transfer: Transfer<D::Hold>,
    chain: Chain,
    counts: Counts,
}

impl<D: Dma> Vsock<D> {
    /// A device that gives the guest the address `cid`, 3 or more, and leads to `host`.
    pub fn new(dma: &D, cid: u32, host: Host) -> Vsock<D> {
        Vsock {
            door: Interest::new(DOOR),
            host,
            cid,
            table: Table::default(),
            resets: VecDeque::new(),
            starved: true,
            held_up: false,
            transport_lost: false,
            life: Life::Idle,
            transfer: Transfer::new(dma.hold()),
            chain: Chain::default(),
            counts: Counts::default(),
        }
    }

    /// Lets programs come while the guest could hear of them.
    fn attend(&mut self, watch: &Watch) -> Result<(), Broken> {
        let open = self.life == Life::Running && !self.starved && !self.table.is_full();
        // Told once for each who comes: one that cannot be let in, for want of a file, would be told for ever.
        let told = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let door = open.then(|| (self.host.door().as_raw_fd(), told));
        self.door.set(watch, door).map_err(|error| {
            Broken::Host(format!("the sockets' listener cannot be watched: {error}"))
        })
    }

    /// Watches everything as befits a new life. Telling off does not fail, and what cannot be watched is found when it is
    /// used.
    fn live(&mut self, life: Life, watch: &Watch) {
        self.life = life;
        for connection in self.table.iter_mut() {
            let wanted = connection.wanted(life);
            let _ = connection.interest.set(watch, wanted);
        }
        let _ = self.attend(watch);
    }

    /// Draws conclusions from what has changed at the connection at `slot`.
    fn settle(&mut self, slot: u32, watch: &Watch) {
        let Some(connection) = self.table.get(slot) else { return };
        connection.settle();
        if connection.is_over() {
            return self.end(slot, watch);
        }
        let wanted = connection.wanted(self.life);
        if connection.interest.set(watch, wanted).is_err() {
            self.counts.failed += 1;
            return self.end(slot, watch);
        }
        self.table.queue(slot);
    }

    /// The connection at `slot` is no more, of which the guest is told, if it knew of it.
    fn end(&mut self, slot: u32, watch: &Watch) {
        let Some(connection) = self.table.get(slot) else { return };
        if connection.is_known() {
            self.resets.push_back((connection.ports, wire::STREAM));
        }
        self.forget(slot, watch);
    }

    /// The connection at `slot` is no more.
    fn forget(&mut self, slot: u32, watch: &Watch) {
        if let Some(mut connection) = self.table.remove(slot) {
            let _ = connection.interest.set(watch, None);
        }
    }
}

impl<D: Dma> Model<D> for Vsock<D> {
    fn device_type(&self) -> DeviceType {
        DeviceType(VIRTIO_ID_VSOCK)
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = u64::from(self.cid).to_le_bytes();
        let rest =
            usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or(&[]);
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn start(&mut self, _features: u64, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        // Kicks follow.
        self.life = Life::Running;
        self.attend(io.watch)
    }

    fn kicked(&mut self, queue: u16, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        let progress = match queue {
            RX => Progress::Done,
            TX => self.take_packets(io)?,
            _ => return self.tell_event(io).map(|()| Progress::Done),
        };
        self.deliver(io)?;
        self.attend(io.watch)?;
        Ok(progress)
    }

    fn ready(&mut self, token: u32, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        match token.checked_sub(STREAMS) {
            None => self.answer_door(io.watch),
            Some(slot) => self.stream_ready(slot, io.watch),
        }
        self.deliver(io)?;
        self.attend(io.watch)
    }

    fn pause(&mut self, watch: &Watch) {
        self.live(Life::Paused, watch);
    }

    fn resume(&mut self, watch: &Watch) {
        self.live(Life::Running, watch);
    }

    fn reset(&mut self, watch: &Watch) {
        for mut connection in self.table.drain() {
            let _ = connection.interest.set(watch, None);
        }
        self.resets.clear();
        (self.starved, self.held_up, self.transport_lost) = (true, false, false);
        self.live(Life::Idle, watch);
    }

    fn save(&self) -> Saved {
        state::save(self.cid)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), String> {
        state::restore(self.cid, saved)?;
        // Closed, they are told off.
        self.table.drain().for_each(drop);
        self.resets.clear();
        self.transport_lost = true;
        Ok(())
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("connections", self.table.len() as u64),
            ("by_guest", self.counts.by_guest),
            ("by_host", self.counts.by_host),
            ("refused", self.counts.refused),
            ("bytes_from_guest", self.counts.bytes_from_guest),
            ("bytes_to_guest", self.counts.bytes_to_guest),
            ("resets", self.counts.resets),
            ("ignored", self.counts.ignored),
            ("failed", self.counts.failed),
        ]
    }
}
