//! Packets that the guest sent (virtio 1.2, 5.10.6).

use std::io;
use std::os::fd::AsFd;

use crate::dma::{Dma, gather, part};
use crate::virtio::model::{Io, Progress, TURN};
use crate::virtio::queue::Broken;
use crate::virtio::watch::{Interest, Watch};

use super::connection::{BUFFER, Connection, Phase, Ports};
use super::wire::{HEADER, HOST_CID, Header, Op, STREAM, TX};
use super::{STREAMS, Vsock};

/// Answers to packets that wait for the guest's buffers. A guest that does not take them is not listened to.
const RESETS: usize = 256;
/// Bytes of one turn.
const TURN_BYTES: u64 = 2 << 20;

impl<D: Dma> Vsock<D> {
    /// Takes the packets in the transmit queue, until it is empty, or this turn is over, or too many wait for an answer.
    pub(super) fn take_packets(&mut self, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        let queue = usize::from(TX);
        let (mut turn, mut left) = (TURN, TURN_BYTES);
        let mut used = false;
        let progress = 'queue: loop {
            io.queues[queue].mute(io.memory)?;
            while io.queues[queue].next(io.memory, &mut self.chain)? {
                self.held_up = self.resets.len() >= RESETS;
                if turn == 0 || left == 0 || self.held_up {
                    io.queues[queue].undo();
                    break 'queue if self.held_up { Progress::Done } else { Progress::More };
                }
                let bytes = self.take_packet(io)?;
                turn -= 1;
                left = left.saturating_sub(bytes.into());
                used = true;
                io.queues[queue].add_used(io.memory, self.chain.head, 0)?;
            }
            if !io.queues[queue].unmute(io.memory)? {
                break Progress::Done;
            }
        };
        if used {
            io.signal(TX)?;
        }
        Ok(progress)
    }

    /// Takes the packet in `self.chain`: how many bytes of data it has.
    fn take_packet(&mut self, io: &mut Io<'_, '_, D>) -> Result<u32, Broken> {
        let bad = |reason| Broken::Request { queue: TX, head: self.chain.head, reason };
        if !self.chain.writable.is_empty() {
            return Err(bad("has memory to write in what is to be sent".into()));
        }
        let mut bytes = [0; HEADER];
        let came = gather(io.memory, &self.chain.readable, &mut bytes);
        let came = came.map_err(|source| Broken::Memory { queue: TX, source })?;
        if came < HEADER {
            return Err(bad(format!("has a header of {came} bytes, not {HEADER}")));
        }
        let header = Header::parse(&bytes);
        let data = self.chain.readable_bytes() - HEADER as u64;
        if data > BUFFER.into() {
            return Err(bad(format!(
                "has {data} bytes, and no connection takes more than {BUFFER}"
            )));
        }
        if u64::from(header.len) > data {
            return Err(bad(format!("says that it has {} bytes, and has {data}", header.len)));
        }
        if header.src_cid != u64::from(self.cid) || header.dst_cid != HOST_CID {
            self.counts.ignored += 1;
            return Ok(header.len);
        }
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        let op = Op::of(header.op);
        if header.kind != STREAM {
            self.refuse(ports, header.kind, op);
            return Ok(header.len);
        }
        match self.table.find(ports) {
            Some(slot) => self.take(slot, op, &header, io)?,
            None if op == Some(Op::Request) => self.connect(ports, &header, io.watch),
            None => self.refuse(ports, STREAM, op),
        }
        Ok(header.len)
    }

    /// A packet that concerns nothing is answered with a reset, and a reset with nothing.
    fn refuse(&mut self, ports: Ports, kind: u16, op: Option<Op>) {
        if op != Some(Op::Rst) {
            self.counts.resets += 1;
            self.resets.push_back((ports, kind));
        }
    }

    /// The guest connects to a program of the host.
    fn connect(&mut self, ports: Ports, header: &Header, watch: &Watch) {
        let connected = self.host.connect(ports.host).ok().and_then(|stream| {
            self.table.insert(|slot| {
                let interest = Interest::new(STREAMS + slot);
                let mut connection = Connection::new(ports, Phase::Open, stream, interest);
                connection.take_credit(header);
                connection.tell(Op::Response);
                connection
            })
        });
        match connected {
            Some(slot) => {
                self.counts.by_guest += 1;
                self.table.name(slot);
                self.settle(slot, watch);
            }
            None => {
                self.counts.refused += 1;
                self.resets.push_back((ports, STREAM));
            }
        }
    }

    /// The packet in `self.chain`, of which `header` is the header, concerns the connection at `slot`.
    fn take(
        &mut self,
        slot: u32,
        op: Option<Op>,
        header: &Header,
        io: &mut Io<'_, '_, D>,
    ) -> Result<(), Broken> {
        let Some(connection) = self.table.get(slot) else { return Ok(()) };
        connection.take_credit(header);
        if op == Some(Op::Rst) {
            if connection.linger() {
                self.table.unname(slot);
                self.settle(slot, io.watch);
            } else {
                self.forget(slot, io.watch);
            }
            return Ok(());
        }
        let fits = match (op, &connection.phase) {
            (Some(Op::Response), Phase::Asked) => greet(connection),
            (Some(Op::Shutdown), Phase::Open | Phase::Ending) => {
                connection.shut(header.flags);
                true
            }
            (Some(Op::CreditRequest), Phase::Open | Phase::Ending) => {
                connection.tell(Op::CreditUpdate);
                true
            }
            (Some(Op::CreditUpdate), _) => true,
            (Some(Op::Rw), Phase::Open | Phase::Ending) => self.forward(slot, header.len, io)?,
            _ => false,
        };
        if fits {
            self.settle(slot, io.watch);
        } else {
            self.counts.resets += 1;
            self.end(slot, io.watch);
        }
        Ok(())
    }

    /// Gives the `len` bytes of data in `self.chain` to the host; whether the guest may send them.
    fn forward(&mut self, slot: u32, len: u32, io: &mut Io<'_, '_, D>) -> Result<bool, Broken> {
        let memory = |source| Broken::Memory { queue: TX, source };
        let Some(connection) = self.table.get(slot) else { return Ok(false) };
        if !connection.guest_sends() || len as usize > connection.backlog.room() {
            return Ok(false);
        }
        self.counts.bytes_from_guest += u64::from(len);
        let (from, len) = (HEADER as u64, len as usize);
        let mut went = 0;
        if len > 0 && connection.backlog.is_empty() && !connection.is_deaf() {
            let stream = connection.stream.as_fd();
            let readable = &self.chain.readable;
            match self.transfer.write(stream, readable, from, len as u64).map_err(memory)? {
                Ok(taken) => went = taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => connection.deafen(),
            }
        }
        if connection.is_deaf() {
            went = len;
        }
        connection.forwarded(went);
        let mut rest = Vec::new();
        part(&self.chain.readable, from + went as u64, (len - went) as u64, &mut rest);
        connection.backlog.append(io.memory, &rest).map_err(memory)?;
        Ok(true)
    }
}

/// The guest has accepted; whether the host's program could be told. There is room in a stream that nobody has written to.
fn greet(connection: &mut Connection) -> bool {
    connection.phase = Phase::Open;
    let line = format!("OK {}\n", connection.ports.host);
    rustix::io::write(&connection.stream, line.as_bytes()) == Ok(line.len())
}
