//! Each kind of device, as an attacker finds it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use devices::dma::Pinning;
use devices::virtio::blk::Blk;
use devices::virtio::blk::host::{Engine, host, open};
use devices::virtio::blk::wire::Shape;
use devices::virtio::console::Console;
use devices::virtio::console::host::Files;
use devices::virtio::console::wire::Size;
use devices::virtio::model::Model;
use devices::virtio::rate::Limiter;
use devices::virtio::rng::Rng;
use devices::virtio::rng::host::{Source, URANDOM};
use devices::virtio::vsock::Vsock;
use devices::virtio::vsock::host::Host as Sockets;
use tempfile::{NamedTempFile, TempDir};

/// A kind of device.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// The queue that is attacked: one that is served when it is kicked.
    pub(crate) queue: u16,
    pub(crate) make: fn(&Pinning) -> (Box<dyn Model<Pinning>>, Host),
    /// Something comes from the host.
    pub(crate) input: fn(&mut Host, u8),
}

/// What a device stands on; it goes when the device has gone.
pub(crate) type Host = Box<dyn std::any::Any>;

/// All of them.
pub(crate) const KINDS: &[&Kind] = &[&BLK, &CONSOLE, &RNG, &VSOCK];

/// A sector of the disk.
pub(crate) const SECTOR: [u8; 512] = [0x5a; 512];

pub(crate) const BLK: Kind = Kind { name: "blk", queue: 0, make: blk, input: |_, _| {} };

pub(crate) const CONSOLE: Kind = Kind { name: "console", queue: 1, make: console, input: typed };
pub(crate) const RNG: Kind = Kind { name: "rng", queue: 0, make: rng, input: |_, _| {} };
pub(crate) const VSOCK: Kind = Kind { name: "vsock", queue: 1, make: vsock, input: connects };

fn blk(dma: &Pinning) -> (Box<dyn Model<Pinning>>, Host) {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(&SECTOR.repeat(2048)).expect("room for it");
    let shape =
        Shape { sectors: 2048, read_only: false, discard: true, queues: 1, queue_size: 256 };
    let opened = open(file.path(), false).expect("it was just made");
    let host = host(opened, Engine::Auto, 256).expect("a file can be read");
    let model = Blk::new(dma, shape, "victim", host, Limiter::new(None, None));
    (Box::new(model.expect("a disk")), Box::new(file))
}

fn console(dma: &Pinning) -> (Box<dyn Model<Pinning>>, Host) {
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

fn rng(dma: &Pinning) -> (Box<dyn Model<Pinning>>, Host) {
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

fn vsock(dma: &Pinning) -> (Box<dyn Model<Pinning>>, Host) {
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
