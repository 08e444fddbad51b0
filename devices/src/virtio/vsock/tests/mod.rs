//! A socket device worked by the driver of this crate, its thread running, with Unix sockets of this process at the other
//! end. The rig is as much of a guest as there is to the protocol: it sends what it is told to.

mod rules;
mod streams;

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dma::{Dma, Plain};
use crate::virtio::device::Device;
use crate::virtio::driver::{Buffer, Driver, Rings};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::thread::{Attendance, Threads};

use super::Vsock;
use super::host::Host;
use super::wire::{
    EVENT, HEADER, HOST_CID, Header, Op, QUEUE_SIZES, RX, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM,
    TX,
};

pub(super) const CID: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the guest keeps its buffers; those of a queue are of the same size.
const RX_AT: u64 = 0x10_0000;
const RX_LEN: u64 = 4096;
const TX_AT: u64 = 0x20_0000;
const TX_LEN: u64 = (64 << 10) + 4096;
const EVENTS_AT: u64 = 0x8_0000;
/// Buffers that the guest keeps in the transmit queue at most.
const TX_SLOTS: u64 = 32;

pub(super) const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A packet that came.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) data: Vec<u8>,
}

impl Packet {
    pub(super) fn op(&self) -> Op {
        Op::of(self.header.op).unwrap()
    }

    /// Guest's and host's port.
    pub(super) fn ports(&self) -> (u32, u32) {
        (self.header.dst_port, self.header.src_port)
    }
}

pub(super) struct Rig {
    pub(super) dma: Plain,
    pub(super) device: Arc<Device<Plain>>,
    pub(super) driver: Driver<Plain>,
    pub(super) threads: Option<Threads>,
    /// In place of a thread, so that it is seen what wakes it.
    attendance: Option<Attendance<Plain>>,
    folder: TempDir,
    /// Where each buffer of the receive queue is, by its descriptor.
    rx: HashMap<u16, u64>,
    /// Bytes that came by each connection, all of which the guest has taken: `fwd_cnt`.
    taken: HashMap<(u32, u32), u32>,
    pub(super) buf_alloc: u32,
    sent: u64,
    under_way: u64,
}

pub(super) fn device(dma: &Plain, cid: u32, path: &std::path::Path) -> Arc<Device<Plain>> {
    let host = Host::new(UnixListener::bind(path).unwrap(), path).unwrap();
    let model = Vsock::new(dma, cid, host);
    Arc::new(Device::new("vsock", dma.clone(), Box::new(model), Interrupt::default()).unwrap())
}

impl Rig {
    /// A guest with buffers for packets.
    pub(super) fn new() -> Rig {
        let mut rig = Rig::hungry();
        rig.feed(64);
        rig
    }

    /// The same, with the device attended to by this thread.
    pub(super) fn by_hand() -> Rig {
        let mut rig = Rig::with(|_| None);
        rig.attendance = Some(Attendance::new(vec![Arc::clone(&rig.device)]).unwrap());
        rig.bring_up();
        rig.feed(64);
        rig
    }

    /// A guest without.
    pub(super) fn hungry() -> Rig {
        let mut rig = Rig::with(|device| Some(Threads::start(&[Arc::clone(device)], 1).unwrap()));
        rig.bring_up();
        rig
    }

    fn with(threads: impl FnOnce(&Arc<Device<Plain>>) -> Option<Threads>) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let dma = Plain::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap());
        let device = device(&dma, CID, &folder.path().join("v"));
        let threads = threads(&device);
        let driver = Driver::new(Arc::clone(&device));
        Rig {
            dma,
            device,
            driver,
            threads,
            attendance: None,
            folder,
            rx: HashMap::new(),
            taken: HashMap::new(),
            buf_alloc: 1 << 20,
            sent: 0,
            under_way: 0,
        }
    }

    pub(super) fn bring_up(&mut self) {
        self.dma.view().write_slice(&vec![0; 0x8000], GuestAddress(0x1000)).unwrap();
        let features = self.driver.offered();
        assert!(self.driver.negotiate(features));
        let mut at = 0x1000_u64;
        for size in QUEUE_SIZES {
            let rings = Rings::at(at, size);
            self.driver.add_queue(rings);
            at = rings.end().next_multiple_of(4096);
        }
        assert!(at <= EVENTS_AT);
        self.driver.go();
        self.rx.clear();
        self.taken.clear();
        self.under_way = 0;
    }

    /// The path of the socket, or of the one that the guest reaches as `port`.
    pub(super) fn path(&self, port: Option<u32>) -> PathBuf {
        self.folder.path().join(port.map_or("v".into(), |port| format!("v_{port}")))
    }

    pub(super) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(Some(port))).unwrap()
    }

    /// Gives `count` buffers for packets.
    pub(super) fn feed(&mut self, count: usize) {
        for _ in 0..count {
            let taken: Vec<u64> = self.rx.values().copied().collect();
            let free = (0..).map(|slot| RX_AT + slot * RX_LEN).find(|at| !taken.contains(at));
            let at = free.unwrap();
            let buffer = [Buffer::writable(at, RX_LEN as u32)];
            let head = self.driver.add(&self.dma.view(), RX, &buffer).unwrap();
            self.rx.insert(head, at);
        }
        self.driver.kick(RX);
    }

    pub(super) fn feed_event(&mut self) {
        let buffer = [Buffer::writable(EVENTS_AT, 8)];
        self.driver.add(&self.dma.view(), EVENT, &buffer).unwrap();
        self.driver.kick(EVENT);
    }

    /// The next event, if one has come.
    pub(super) fn event(&mut self) -> Option<u32> {
        let view = self.dma.view();
        let (_, written) = self.driver.poll(&view, EVENT)?;
        assert_eq!(written, 4);
        Some(view.read_obj(GuestAddress(EVENTS_AT)).unwrap())
    }

    /// Calls `done` until it gives something.
    pub(super) fn wait<T>(&mut self, what: &str, mut done: impl FnMut(&mut Rig) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(attendance) = &self.attendance {
                attendance.turn(Some(Duration::ZERO)).unwrap();
            }
            if let Some(result) = done(self) {
                return result;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}: {:?}", self.device.report());
            std::thread::yield_now();
        }
    }

    /// Sends the bytes of a packet, in two buffers or one.
    pub(super) fn send_raw(&mut self, packet: &[u8]) {
        self.wait("room in the transmit queue", |rig| {
            while rig.driver.poll(&rig.dma.view(), TX).is_some() {
                rig.under_way -= 1;
            }
            (rig.under_way < TX_SLOTS).then_some(())
        });
        let at = TX_AT + self.sent % TX_SLOTS * TX_LEN;
        let view = self.dma.view();
        view.write_slice(packet, GuestAddress(at)).unwrap();
        let cut = if self.sent.is_multiple_of(2) { HEADER } else { 20 }.min(packet.len());
        let pieces = [(0, cut), (cut, packet.len() - cut)];
        let buffers: Vec<_> = pieces
            .iter()
            .filter(|piece| piece.1 > 0)
            .map(|&(from, len)| Buffer::readable(at + from as u64, len as u32))
            .collect();
        self.driver.add(&view, TX, &buffers).unwrap();
        self.driver.kick(TX);
        (self.sent, self.under_way) = (self.sent + 1, self.under_way + 1);
    }

    /// The header of a packet of `op` from `guest`'s port to `host`'s.
    pub(super) fn header(&self, op: Op, guest: u32, host: u32) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            kind: STREAM,
            op: op as u16,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.taken.get(&(guest, host)).copied().unwrap_or(0),
            ..Header::default()
        }
    }

    pub(super) fn send(&mut self, op: Op, guest: u32, host: u32) {
        let header = self.header(op, guest, host);
        self.send_raw(&header.bytes());
    }

    pub(super) fn send_data(&mut self, guest: u32, host: u32, data: &[u8]) {
        let len = data.len() as u32;
        let header = Header { len, ..self.header(Op::Rw, guest, host) };
        self.send_raw(&[&header.bytes(), data].concat());
    }

    pub(super) fn shut(&mut self, guest: u32, host: u32, flags: u32) {
        let header = Header { flags, ..self.header(Op::Shutdown, guest, host) };
        self.send_raw(&header.bytes());
    }

    /// The next packet that has come, if one has. Its buffer is given again.
    pub(super) fn poll(&mut self) -> Option<Packet> {
        let packet = self.poll_only()?;
        self.feed(1);
        Some(packet)
    }

    /// The same, and its buffer is not.
    pub(super) fn poll_only(&mut self) -> Option<Packet> {
        let view = self.dma.view();
        let (head, written) = self.driver.poll(&view, RX)?;
        let at = self.rx.remove(&head).unwrap();
        let mut bytes = vec![0; written as usize];
        view.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let (header, data) = bytes.split_first_chunk().unwrap();
        let (header, data) = (Header::parse(header), data.to_vec());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID.into()));
        assert_eq!(header.len as usize, data.len());
        let packet = Packet { header, data };
        let taken = self.taken.entry(packet.ports()).or_default();
        *taken = taken.wrapping_add(header.len);
        Some(packet)
    }

    pub(super) fn recv(&mut self) -> Packet {
        self.wait("a packet", Rig::poll)
    }

    /// The next packet, which is of `op`, for the ports given.
    pub(super) fn expect(&mut self, op: Op, guest: u32, host: u32) -> Packet {
        let packet = self.recv();
        assert_eq!((packet.op(), packet.ports()), (op, (guest, host)), "{packet:?}");
        packet
    }

    /// The next `len` bytes of a connection; nothing else but credit comes meanwhile.
    pub(super) fn read(&mut self, guest: u32, host: u32, len: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < len {
            let packet = self.recv();
            assert_eq!(packet.ports(), (guest, host));
            match packet.op() {
                Op::Rw => read.extend(packet.data),
                Op::CreditUpdate => {}
                other => panic!("{other:?} after {} bytes", read.len()),
            }
        }
        assert_eq!(read.len(), len);
        read
    }

    /// Takes what comes for what was sent so far, and forgets it.
    pub(super) fn forget_answers(&mut self) {
        let nobodys = (0xffff, 0xffff);
        self.send(Op::CreditUpdate, nobodys.0, nobodys.1);
        while self.recv().ports() != nobodys {}
    }

    /// Nothing wakes the device's thread once it has done what there is to do.
    pub(super) fn expect_sleep(&mut self, when: &str) {
        const NIGHT: Duration = Duration::from_millis(20);
        let attendance = self.attendance.as_ref().unwrap();
        let slept = (0..100).any(|_| {
            let begin = Instant::now();
            attendance.turn(Some(NIGHT)).unwrap();
            begin.elapsed() >= NIGHT
        });
        assert!(slept, "{when}: {:?}", self.device.report());
    }

    /// Nothing comes for a while.
    pub(super) fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(30));
        let packet = self.poll();
        assert!(packet.is_none(), "{packet:?}");
    }

    /// The guest connects to the host's `listener` at port `host`.
    pub(super) fn connect(&mut self, guest: u32, host: u32, listener: &UnixListener) -> UnixStream {
        self.send(Op::Request, guest, host);
        self.expect(Op::Response, guest, host);
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A program of the host connects, and says `greeting`.
    pub(super) fn program(&self, greeting: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.path(None)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        std::io::Write::write_all(&mut stream, greeting.as_bytes()).unwrap();
        stream
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        let report = self.device.report();
        report.counts.iter().find(|count| count.0 == name).unwrap().1
    }

    pub(super) fn rest(&self) {
        self.device.quiesce(Instant::now() + PATIENCE).unwrap();
    }

    pub(super) fn broken(&self) -> Option<String> {
        self.device.report().broken
    }
}

/// The next bytes of a stream.
pub(super) fn exactly(from: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

/// What a stream still says before its end.
pub(super) fn rest_of(from: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Up to the end of a line.
pub(super) fn line(from: &mut UnixStream) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        line.push(exactly(from, 1)[0].into());
    }
    line
}

pub(super) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251 + at + seed * 17) as u8).collect()
}
