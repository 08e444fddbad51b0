//! Each kind of device, as an attacker finds it.
#![allow(unsafe_code, reason = "a network's host side moves memory by address")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use devices::dma::{Pinning, Reclaiming};
use devices::virtio::balloon::host::{Given, Reclaim, Refused};
use devices::virtio::balloon::{self, Balloon};
use devices::virtio::blk::Blk;
use devices::virtio::blk::host::{Engine, host, open};
use devices::virtio::blk::wire::Shape;
use devices::virtio::console::Console;
use devices::virtio::console::host::Files;
use devices::virtio::console::wire::Size;
use devices::virtio::model::Model;
use devices::virtio::net::host::{Host as Network, Offloads, Unmoved};
use devices::virtio::net::{Config, Net};
use devices::virtio::pmem::Pmem;
use devices::virtio::pmem::host::Ephemeral;
use devices::virtio::pmem::wire::Region;
use devices::virtio::rate::Limiter;
use devices::virtio::rng::Rng;
use devices::virtio::rng::host::{Source, URANDOM};
use devices::virtio::vsock::Vsock;
use devices::virtio::vsock::host::Host as Sockets;
use guest_mm::Guest;
use tempfile::{NamedTempFile, TempDir};

/// A kind of device.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// The queue that is attacked: one that is served when it is kicked.
    pub(crate) queue: u16,
    pub(crate) make: fn(&Pinning, &Guest) -> Made,
    /// Something comes from the host.
    pub(crate) input: fn(&mut Host, u8),
}

/// A model, and what it stands on.
pub(crate) type Made = (Box<dyn Model<Pinning>>, Host);

/// What a device stands on; it goes when the device has gone.
pub(crate) type Host = Box<dyn std::any::Any>;

/// All of them.
pub(crate) const KINDS: &[&Kind] = &[&BLK, &NET, &CONSOLE, &RNG, &VSOCK, &BALLOON, &PMEM];

/// A sector of the disk.
pub(crate) const SECTOR: [u8; 512] = [0x5a; 512];

pub(crate) const BALLOON: Kind =
    Kind { name: "balloon", queue: 0, make: balloon, input: |_, _| {} };
/// Free pages, behind the queue of statistics.
pub(crate) const BALLOON_FREE: Kind = Kind { queue: 3, ..BALLOON };
pub(crate) const PMEM: Kind = Kind { name: "pmem", queue: 0, make: pmem, input: |_, _| {} };
pub(crate) const BLK: Kind = Kind { name: "blk", queue: 0, make: blk, input: |_, _| {} };

pub(crate) const CONSOLE: Kind = Kind { name: "console", queue: 1, make: console, input: typed };
pub(crate) const NET: Kind = Kind { name: "net", queue: 1, make: net, input: frames };
/// The other way round.
pub(crate) const NET_RX: Kind = Kind { queue: 0, ..NET };
/// Typed input.
pub(crate) const CONSOLE_RX: Kind = Kind { queue: 0, ..CONSOLE };
pub(crate) const VSOCK_RX: Kind = Kind { queue: 0, ..VSOCK };
pub(crate) const RNG: Kind = Kind { name: "rng", queue: 0, make: rng, input: |_, _| {} };
pub(crate) const VSOCK: Kind = Kind { name: "vsock", queue: 1, make: vsock, input: connects };

fn blk(dma: &Pinning, _: &Guest) -> Made {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(&SECTOR.repeat(2048)).expect("room for it");
    let shape =
        Shape { sectors: 2048, read_only: false, discard: true, queues: 1, queue_size: 256 };
    let opened = open(file.path(), false).expect("it was just made");
    let host = host(opened, Engine::Auto, 256).expect("a file can be read");
    let model = Blk::new(dma, shape, "victim", host, Limiter::new(None, None));
    (Box::new(model.expect("a disk")), Box::new(file))
}

fn console(dma: &Pinning, _: &Guest) -> Made {
    let (keyboard, input) = UnixStream::pair().expect("sockets");
    let output = File::create("/dev/null").expect("it is there");
    let port = Files::pair(input.into(), output.into()).expect("files that do not block");
    keyboard.set_nonblocking(true).expect("a socket");
    let size = Size { columns: 80, rows: 25 };
    (Box::new(Console::new(dma, size, Box::new(port))), Box::new(keyboard))
}

fn typed(host: &mut Host, byte: u8) {
    if let Some(keyboard) = host.downcast_mut::<UnixStream>() {
        // It is full when the guest does not read.
        let _ = keyboard.write(&vec![byte; usize::from(byte)]);
    }
}

/// A cable: a pair of sockets.
#[derive(Debug)]
struct Cable(UnixDatagram);

impl Network for Cable {
    fn pairs(&self) -> u16 {
        1
    }

    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true, uso: false }
    }

    fn leave(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn use_pairs(&mut self, _pairs: u16) -> io::Result<()> {
        Ok(())
    }

    fn event(&self, _pair: u16) -> RawFd {
        self.0.as_raw_fd()
    }

    unsafe fn send(&mut self, _pair: u16, buffers: &[libc::iovec]) -> Result<(), Unmoved> {
        // SAFETY: the memory is valid until this returns; that is the caller's obligation.
        let sent =
            unsafe { libc::writev(self.0.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32) };
        moved(sent).map(|_| ())
    }

    unsafe fn receive(&mut self, _pair: u16, buffers: &[libc::iovec]) -> Result<usize, Unmoved> {
        // SAFETY: likewise.
        moved(unsafe { libc::readv(self.0.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32) })
    }

    fn mtu(&self) -> Option<u16> {
        Some(1500)
    }
}

fn moved(result: isize) -> Result<usize, Unmoved> {
    usize::try_from(result).map_err(|_| match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Unmoved::NotYet,
        error => Unmoved::Frame(error),
    })
}

fn net(dma: &Pinning, _: &Guest) -> Made {
    let (ours, theirs) = UnixDatagram::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket");
    theirs.set_nonblocking(true).expect("a socket");
    let config = Config { mac: [2, 0, 0, 0, 0, 1], queues: 1, queue_size: 256, offloads: true };
    let model = Net::new(dma, config, Box::new(Cable(ours)));
    (Box::new(model.expect("a network device")), Box::new(theirs))
}

/// A frame comes, of a length that `byte` says; what the guest sent is taken.
fn frames(host: &mut Host, byte: u8) {
    if let Some(wire) = host.downcast_mut::<UnixDatagram>() {
        let _ = wire.send(&vec![byte; 12 + usize::from(byte) * 100]);
        let _ = wire.recv(&mut [0; 4096]);
    }
}

fn rng(dma: &Pinning, _: &Guest) -> Made {
    let source = Source::open(Path::new(URANDOM)).expect("it is there");
    let model = Rng::new(dma, source, Limiter::new(None, None));
    (Box::new(model.expect("an entropy device")), Box::new(()))
}

/// Programs beside a socket device.
struct Programs {
    folder: TempDir,
    clients: Vec<UnixStream>,
    listener: UnixListener,
}

fn vsock(dma: &Pinning, _: &Guest) -> Made {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("v");
    let listen = |path: &Path| UnixListener::bind(path).expect("a socket");
    let host = Sockets::new(listen(&path), &path).expect("a socket");
    // Port 0 of the host.
    let listener = listen(&folder.path().join("v_0"));
    listener.set_nonblocking(true).expect("a socket");
    let programs = Programs { folder, clients: Vec::new(), listener };
    (Box::new(Vsock::new(dma, 3, host)), Box::new(programs))
}

/// One more program connects, those that are there do something, and one goes.
fn connects(host: &mut Host, byte: u8) {
    let Some(Programs { folder, clients, listener }) = host.downcast_mut() else { return };
    clients.extend(UnixStream::connect(folder.path().join("v")));
    clients.extend(listener.accept().map(|(client, _)| client));
    for client in clients.iter_mut() {
        let _ = client.set_nonblocking(true);
        let _ = writeln!(client, "CONNECT {byte}");
        let _ = client.read(&mut [0; 4096]);
    }
    if clients.len() > 20 {
        clients.remove(usize::from(byte) % 20);
    }
}

/// Gives back everything but what the disk beside it needs: that is another device's affair.
#[derive(Debug)]
struct Fenced(Reclaiming);

impl Fenced {
    fn check(first: u64, frames: u64) -> Result<(), Refused> {
        let fence = super::NEIGHBOUR >> 12..super::DATA >> 12;
        let overlaps = first < fence.end && fence.start < first + frames;
        if overlaps { Err(Refused::NotRam) } else { Ok(()) }
    }
}

impl Reclaim for Fenced {
    fn granule(&self) -> u64 {
        self.0.granule()
    }

    fn give_back(&self, first: u64, frames: u64) -> Result<Given, Refused> {
        Fenced::check(first, frames)?;
        self.0.give_back(first, frames)
    }

    fn take_back(&self, first: u64, frames: u64) -> Result<u64, Refused> {
        self.0.take_back(first, frames)
    }
}

fn balloon(_: &Pinning, guest: &Guest) -> Made {
    let statistics = Some(Duration::from_millis(1));
    let shape = balloon::Shape { target: 9, deflate_on_oom: true, reporting: true, statistics };
    let host = Box::new(Fenced(Reclaiming::new(guest.reclaimer())));
    (Box::new(Balloon::new(shape, host).expect("a timer")), Box::new(()))
}

fn pmem(_: &Pinning, _: &Guest) -> Made {
    let region = Region { start: 1 << 32, size: 2 << 20 };
    (Box::new(Pmem::new(region, Box::new(Ephemeral))), Box::new(()))
}
