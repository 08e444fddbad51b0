//! Each kind of device, as an attacker finds it.

use std::io::Write;

use devices::dma::Pinning;
use devices::virtio::blk::Blk;
use devices::virtio::blk::host::{Engine, host, open};
use devices::virtio::blk::wire::Shape;
use devices::virtio::model::Model;
use devices::virtio::rate::Limiter;
use tempfile::NamedTempFile;

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
pub(crate) const KINDS: &[&Kind] = &[&BLK];

/// A sector of the disk.
pub(crate) const SECTOR: [u8; 512] = [0x5a; 512];

pub(crate) const BLK: Kind = Kind { name: "blk", queue: 0, make: blk, input: |_, _| {} };

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
