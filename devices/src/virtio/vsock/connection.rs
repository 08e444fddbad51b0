//! A connection: how far it has come, what is on its way, and its credit (virtio 1.2, 5.10.6.3).

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use crate::virtio::backlog::Backlog;
use crate::virtio::watch::{Interest, hung_up};

use super::Life;
use super::wire::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM};

/// Bytes from the guest that one connection keeps until the host takes them: `buf_alloc`.
pub const BUFFER: u32 = 256 << 10;

/// The ends of a connection; the addresses are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// How far a connection has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// A program of the host has connected; this is what it has said so far. The guest knows nothing of it.
    Greeting(Vec<u8>),
    /// The guest was asked, and has not answered.
    Asked,
    /// Data may flow.
    Open,
    /// The host's program has gone. The guest is told, and has to say that it has heard it.
    Ending,
    /// The guest has done with it, and knows it no more. The host has not read all yet.
    Lingering,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) phase: Phase,
    pub(super) stream: UnixStream,
    pub(super) interest: Interest,
    /// Operations that the guest is to be told of, a bit for each.
    pending: u8,
    /// What the guest got last was no data: then data goes before other operations, which a guest may ask for without end.
    pub(super) data_next: bool,
    /// It is among those that have something for the guest.
    pub(super) queued: bool,

    /// From the guest, and not yet taken by the host.
    pub(super) backlog: Backlog,
    /// Bytes that the host took, and what the guest was told of that: `fwd_cnt`.
    forwarded: u32,
    told: u32,
    /// The host takes no more.
    deaf: bool,

    /// Bytes sent to the guest.
    sent: u32,
    /// The guest's `buf_alloc` and `fwd_cnt`.
    peer_buffer: u32,
    peer_forwarded: u32,
    /// The guest has been asked for credit, and has given none since.
    begged: bool,
    /// The host has something to read, as far as is known.
    pub(super) readable: bool,
    /// The host sends no more.
    mute: bool,

    /// What the guest has said that it does not do any more.
    guest_shut: u32,
    /// The host was told that the guest sends no more.
    write_shut: bool,
}

impl Connection {
    pub(super) fn new(
        ports: Ports,
        phase: Phase,
        stream: UnixStream,
        interest: Interest,
    ) -> Connection {
        Connection {
            ports,
            phase,
            stream,
            interest,
            pending: 0,
            data_next: false,
            queued: false,
            backlog: Backlog::new(BUFFER as usize),
            forwarded: 0,
            told: 0,
            deaf: false,
            sent: 0,
            peer_buffer: 0,
            peer_forwarded: 0,
            begged: false,
            readable: false,
            mute: false,
            guest_shut: 0,
            write_shut: false,
        }
    }

    /// Bytes that the guest has room for. A guest that says it forwarded more than it got has none.
    pub(super) fn credit(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(on_the_way)
    }

    /// Takes the guest's credit from `header`: every packet has it.
    pub(super) fn take_credit(&mut self, header: &Header) {
        (self.peer_buffer, self.peer_forwarded) = (header.buf_alloc, header.fwd_cnt);
        if self.credit() > 0 {
            self.begged = false;
        }
    }

    /// `bytes` went to the guest.
    pub(super) fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// `bytes` of the guest's are not here any more.
    pub(super) fn forwarded(&mut self, bytes: usize) {
        self.forwarded = self.forwarded.wrapping_add(bytes as u32);
    }

    /// The host takes no more. What it did not take is gone.
    pub(super) fn deafen(&mut self) {
        let gone = self.backlog.clear();
        self.forwarded(gone);
        if !self.deaf {
            self.deaf = true;
            self.tell(Op::Shutdown);
        }
        self.end_if_gone();
    }

    /// Whether data from the guest goes nowhere.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// The host sends no more.
    pub(super) fn silence(&mut self) {
        self.readable = false;
        if !self.mute {
            self.mute = true;
            self.tell(Op::Shutdown);
        }
        if hung_up(self.stream.as_fd()) {
            self.deafen();
        }
        self.end_if_gone();
    }

    /// Whether the host has said its last.
    pub(super) fn is_silent(&self) -> bool {
        self.mute
    }

    fn end_if_gone(&mut self) {
        if self.deaf && self.mute && matches!(self.phase, Phase::Open) {
            self.phase = Phase::Ending;
        }
    }

    /// The guest has said that it will not do `flags`, which lasts (5.10.6.5).
    pub(super) fn shut(&mut self, flags: u32) {
        self.guest_shut |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.guest_shut & SHUTDOWN_RECEIVE != 0 {
            self.readable = false;
            // It has gone: then it hears nothing anyway.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
    }

    /// Whether the guest may send data.
    pub(super) fn guest_sends(&self) -> bool {
        self.guest_shut & SHUTDOWN_SEND == 0
    }

    fn guest_receives(&self) -> bool {
        self.guest_shut & SHUTDOWN_RECEIVE == 0
    }

    /// Whether the guest wants nothing more of it, and the host has all that the guest sent.
    pub(super) fn is_over(&self) -> bool {
        !self.guest_sends() && !self.guest_receives() && self.backlog.is_empty()
    }

    /// The guest waits no longer for the host to read what it sent before it said that this was all; whether there is
    /// anything to read.
    pub(super) fn linger(&mut self) -> bool {
        let lingers = !self.guest_sends() && !self.backlog.is_empty();
        if lingers {
            self.phase = Phase::Lingering;
            self.pending = 0;
            self.shut(SHUTDOWN_RECEIVE);
        }
        lingers
    }

    /// Whether the guest knows of it.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.phase, Phase::Greeting(_) | Phase::Lingering)
    }

    /// Draws conclusions from what has changed: what the guest is to be told, and the host.
    pub(super) fn settle(&mut self) {
        if !self.guest_sends() && self.backlog.is_empty() && !self.write_shut {
            self.write_shut = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if !self.is_known() {
            return;
        }
        // The guest may always think that it has most of the buffer.
        if self.forwarded.wrapping_sub(self.told) >= BUFFER / 4 {
            self.tell(Op::CreditUpdate);
        }
        if self.readable && self.credit() == 0 && !self.begged {
            self.begged = true;
            self.tell(Op::CreditRequest);
        }
    }

    /// The guest is to be told of `op`.
    pub(super) fn tell(&mut self, op: Op) {
        self.pending |= 1 << op as u16;
    }

    /// What the guest is to be told of next, beside data.
    pub(super) fn take_op(&mut self) -> Option<Op> {
        let op = Op::of(self.pending.trailing_zeros() as u16)?;
        self.pending &= !(1 << op as u16);
        Some(op)
    }

    /// Whether data can go to the guest.
    pub(super) fn can_send(&self) -> bool {
        matches!(self.phase, Phase::Open)
            && self.readable
            && self.guest_receives()
            && self.credit() > 0
    }

    /// Whether there is anything for the guest.
    pub(super) fn has_work(&self) -> bool {
        self.pending != 0 || self.can_send()
    }

    /// The header of a packet to the guest of `cid`.
    pub(super) fn header(&mut self, cid: u64, op: Op, len: u32) -> Header {
        self.told = self.forwarded;
        let deaf = if self.deaf { SHUTDOWN_RECEIVE } else { 0 };
        let mute = if self.mute { SHUTDOWN_SEND } else { 0 };
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: STREAM,
            op: op as u16,
            flags: if op == Op::Shutdown { deaf | mute } else { 0 },
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
        }
    }

    /// What its stream is to be watched for. What is not acted on must not be told again and again, and that the other end
    /// has closed is told always: so nothing is watched where nothing can be done.
    pub(super) fn wanted(&self, life: Life) -> Option<(RawFd, EventSet)> {
        let running = life == Life::Running;
        let on = match self.phase {
            Phase::Greeting(_) if running => Some(EventSet::IN),
            // To hear that the program has gone.
            Phase::Asked if running => Some(EventSet::empty()),
            Phase::Open => {
                let reads = running && !self.mute && !self.readable && self.guest_receives();
                let writes = !self.backlog.is_empty();
                let waits = running && self.mute && !self.deaf;
                let mut on = EventSet::empty();
                on.set(EventSet::IN, reads);
                on.set(EventSet::OUT, writes);
                (reads || writes || waits).then_some(on)
            }
            Phase::Lingering => Some(EventSet::OUT),
            _ => None,
        };
        on.map(|on| (self.stream.as_raw_fd(), on))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        let (stream, _) = UnixStream::pair().unwrap();
        let ports = Ports { guest: 1, host: 2 };
        Connection::new(ports, Phase::Open, stream, Interest::new(0))
    }

    #[test]
    fn credit_is_counted_around_the_end_of_its_numbers() {
        let mut connection = connection();
        assert_eq!(connection.credit(), 0, "nobody has given any");
        connection.sent = u32::MAX - 10;
        let mut header = Header { buf_alloc: 100, fwd_cnt: u32::MAX - 20, ..Header::default() };
        connection.take_credit(&header);
        assert_eq!(connection.credit(), 90);
        connection.sent(50);
        assert_eq!(connection.credit(), 40);
        header.fwd_cnt = 39;
        connection.take_credit(&header);
        assert_eq!(connection.credit(), 100);
        header.fwd_cnt = 40;
        connection.take_credit(&header);
        assert_eq!(connection.credit(), 0, "more than it got");
    }

    #[test]
    fn what_the_guest_is_told_comes_once_and_in_order() {
        let mut connection = connection();
        connection.readable = true;
        connection.forwarded(BUFFER as usize / 4);
        connection.tell(Op::Response);
        connection.settle();
        connection.settle();
        let told: Vec<_> = std::iter::from_fn(|| connection.take_op()).collect();
        assert_eq!(told, [Op::Response, Op::CreditUpdate, Op::CreditRequest]);
        let header = connection.header(3, Op::CreditUpdate, 0);
        assert_eq!((header.fwd_cnt, header.buf_alloc), (BUFFER / 4, BUFFER));
        connection.settle();
        assert_eq!(connection.take_op(), None);
    }
}
