//! The connections of a device.

use std::collections::{HashMap, VecDeque};

use super::connection::{Connection, Ports};

/// The most connections at a time, those that are still being made among them.
pub const CONNECTIONS: usize = 1023;
/// The first port of a host's program that connects to the guest. Ports below are those that programs listen on.
pub const FIRST_PORT: u32 = 1 << 30;

/// Connections by number and by ports, and those of them that have something for the guest, in turn.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, u32>,
    queue: VecDeque<u32>,
    /// Behind the last port that was given, less [`FIRST_PORT`].
    next_port: u32,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == CONNECTIONS
    }

    /// Adds the connection that `make` makes of its number, unless the table is full.
    pub(super) fn insert(&mut self, make: impl FnOnce(u32) -> Connection) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize] = Some(make(slot));
        Some(slot)
    }

    /// Lets the connection at `slot` be found by its ports.
    pub(super) fn name(&mut self, slot: u32) {
        if let Some(connection) = self.get(slot) {
            let ports = connection.ports;
            self.by_ports.insert(ports, slot);
        }
    }

    pub(super) fn get(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn find(&self, ports: Ports) -> Option<u32> {
        self.by_ports.get(&ports).copied()
    }

    /// Lets it not be found by its ports any more: another may have them.
    pub(super) fn unname(&mut self, slot: u32) {
        let Some(ports) = self.get(slot).map(|connection| connection.ports) else { return };
        if self.by_ports.get(&ports) == Some(&slot) {
            self.by_ports.remove(&ports);
        }
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Connection> {
        self.unname(slot);
        let connection = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        if connection.queued {
            self.queue.retain(|&queued| queued != slot);
        }
        Some(connection)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Connection> {
        self.free.clear();
        self.by_ports.clear();
        self.queue.clear();
        self.slots.drain(..).flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.slots.iter_mut().flatten()
    }

    /// The connection at `slot` has something for the guest, if it says so: behind all others that have.
    pub(super) fn queue(&mut self, slot: u32) {
        let Some(connection) = self.get(slot) else { return };
        if connection.has_work() && !connection.queued {
            connection.queued = true;
            self.queue.push_back(slot);
        }
    }

    /// Who is next.
    pub(super) fn next(&mut self) -> Option<u32> {
        let slot = self.queue.pop_front()?;
        if let Some(connection) = self.get(slot) {
            connection.queued = false;
        }
        Some(slot)
    }

    /// Whether nobody has anything for the guest.
    pub(super) fn is_quiet(&self) -> bool {
        self.queue.is_empty()
    }

    /// Ports for a program of the host that connects to the guest's `port`, not in use.
    pub(super) fn ports_to(&mut self, guest: u32) -> Ports {
        // There are more ports than connections.
        loop {
            let host = FIRST_PORT + self.next_port;
            self.next_port = (self.next_port + 1) % (1 << 30);
            let ports = Ports { guest, host };
            if self.find(ports).is_none() {
                return ports;
            }
        }
    }
}
