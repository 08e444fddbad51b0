//! Packets for the guest: each connection's in turn, one at a time.

use std::os::fd::AsFd;

use crate::dma::{Dma, scatter};
use crate::virtio::model::{Io, TURN};
use crate::virtio::queue::Broken;

use super::connection::BUFFER;
use super::wire::{EVENT, HEADER, HOST_CID, Header, MOST, Op, RX, TRANSPORT_RESET, TX};
use super::{Life, Reset, Vsock};

/// Bytes of one turn.
const TURN_BYTES: u64 = 2 << 20;

impl<D: Dma> Vsock<D> {
    /// Sends what there is, until there is no more, or no buffer for it, or this turn is over.
    pub(super) fn deliver(&mut self, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        let queue = usize::from(RX);
        if self.life != Life::Running || !io.queues[queue].is_ready() {
            return Ok(());
        }
        let (mut turn, mut left) = (TURN, TURN_BYTES);
        let mut used = false;
        io.queues[queue].mute(io.memory)?;
        while self.has_packets() && io.queues[queue].next(io.memory, &mut self.chain)? {
            if turn == 0 || left == 0 {
                io.queues[queue].undo();
                break;
            }
            let head = self.chain.head;
            let bad = |reason| Broken::Request { queue: RX, head, reason };
            if !self.chain.readable.is_empty() {
                return Err(bad("has memory to read in what is to be received".into()));
            }
            let room = self.chain.writable_bytes();
            let Some(room) = room.checked_sub(HEADER as u64) else {
                return Err(bad(format!("has {room} bytes, and a header has {HEADER}")));
            };
            let Some(header) = self.fill(room, io)? else {
                io.queues[queue].undo();
                break;
            };
            let put = scatter(io.memory, &self.chain.writable, &header.bytes());
            put.map_err(|source| Broken::Memory { queue: RX, source })?;
            turn -= 1;
            left = left.saturating_sub(header.len.into());
            used = true;
            io.queues[queue].add_used(io.memory, head, HEADER as u32 + header.len)?;
        }
        // Kicks are of interest only to who has no buffer.
        self.starved =
            io.queues[queue].is_empty(io.memory)? && !io.queues[queue].unmute(io.memory)?;
        if self.has_packets() && !self.starved {
            // The turn is over, or a buffer came behind the last look, and its kick may have been muted.
            io.again(RX);
        }
        if used {
            io.signal(RX)?;
            if std::mem::take(&mut self.held_up) {
                io.again(TX);
            }
        }
        Ok(())
    }

    /// Whether the guest is to get anything.
    fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.table.is_quiet()
    }

    /// The next packet: its header, with its data, up to `room` bytes, in `self.chain`; or there is none.
    fn fill(&mut self, room: u64, io: &mut Io<'_, '_, D>) -> Result<Option<Header>, Broken> {
        let cid = self.cid.into();
        if let Some(reset) = self.resets.pop_front() {
            return Ok(Some(rst(cid, reset)));
        }
        while let Some(slot) = self.table.next() {
            let Some(connection) = self.table.get(slot) else { continue };
            let data_first = connection.data_next && connection.can_send();
            let op = if data_first { None } else { connection.take_op() };
            let mut header = op.map(|op| connection.header(cid, op, 0));
            connection.data_next = header.is_some();
            if header.is_none() && connection.can_send() {
                if room == 0 {
                    let (queue, head) = (RX, self.chain.head);
                    let reason = "has no room for data".into();
                    return Err(Broken::Request { queue, head, reason });
                }
                let most = room.min(MOST).min(connection.credit().into());
                let stream = connection.stream.as_fd();
                let data = HEADER as u64;
                let read = self.transfer.read(stream, &self.chain.writable, data, most);
                match read.map_err(|source| Broken::Memory { queue: RX, source })? {
                    Ok(came) if came > 0 => {
                        // What comes in one piece is all there is, mostly; if not, that is told again.
                        connection.readable = came as u64 == most;
                        connection.sent(came as u32);
                        self.counts.bytes_to_guest += came as u64;
                        header = Some(connection.header(cid, Op::Rw, came as u32));
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        connection.readable = false;
                    }
                    _ => connection.silence(),
                }
            }
            self.settle(slot, io.watch);
            if header.is_some() {
                return Ok(header);
            }
        }
        // What was settled may have ended.
        Ok(self.resets.pop_front().map(|reset| rst(cid, reset)))
    }

    /// Tells the guest that its connections are gone, if they are and there is room for it (5.10.6.7).
    pub(super) fn tell_event(&mut self, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        let queue = usize::from(EVENT);
        if !self.transport_lost || !io.queues[queue].next(io.memory, &mut self.chain)? {
            return Ok(());
        }
        let put = scatter(io.memory, &self.chain.writable, &TRANSPORT_RESET);
        let put = put.map_err(|source| Broken::Memory { queue: EVENT, source })?;
        if put < TRANSPORT_RESET.len() {
            let reason = format!("has {put} bytes, not those of an event");
            return Err(Broken::Request { queue: EVENT, head: self.chain.head, reason });
        }
        self.transport_lost = false;
        io.queues[queue].add_used(io.memory, self.chain.head, put as u32)?;
        io.signal(EVENT)
    }
}

/// The header of a `RST`.
fn rst(cid: u64, (ports, kind): Reset) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: cid,
        src_port: ports.host,
        dst_port: ports.guest,
        kind,
        op: Op::Rst as u16,
        buf_alloc: BUFFER,
        ..Header::default()
    }
}
