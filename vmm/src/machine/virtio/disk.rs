//! `[disk.NAME]`

use std::fs::File;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use devices::dma::Pinning;
use devices::virtio::blk::Blk;
use devices::virtio::blk::host::{Engine, host, open};
use devices::virtio::blk::wire::{SECTOR, Shape};
use devices::virtio::rate::{Limit, Limiter};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::config::{Bytes, Disk, DiskIo};
use crate::machine::MachineError;

use super::Boxed;

/// How long to wait for a lock. The kernel takes an `io_uring` down behind the end of its process, and the file with it: a
/// machine that is started again at once would be refused its own disk.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const NAP: Duration = Duration::from_millis(5);

/// The disk that `disk` describes.
pub(super) fn model(name: &str, disk: &Disk, dma: &Pinning) -> Result<Boxed, MachineError> {
    let path: &Path = &disk.file.value.path;
    let failed = |source| MachineError::Device {
        key: format!("disk.{name}.file"),
        path: path.to_owned(),
        source,
    };
    let read_only = disk.readonly.value;
    let file = open(path, read_only).map_err(failed)?;
    // Two guests that write one disk destroy it; many may read it. Other programs may look at it as they like.
    let lock = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    claim(&file, lock).map_err(|error| match error {
        Errno::AGAIN => failed(std::io::Error::other(
            "another machine has it as a disk, and one of the two may write: make it read-only in both, or copy it",
        )),
        other => failed(other.into()),
    })?;
    let shape = Shape {
        sectors: disk.file.value.bytes.get() / SECTOR,
        read_only,
        discard: disk.discard.value,
        queues: disk.queues.value.into(),
        queue_size: disk.queue_size.value,
    };
    let engine = match disk.io.value {
        DiskIo::Auto => Engine::Auto,
        DiskIo::Uring => Engine::Uring,
        DiskIo::Sync => Engine::Sync,
    };
    let host = host(file, engine, Blk::<Pinning>::depth(&shape)).map_err(failed)?;
    let limit = |per_second| Limit { per_second };
    let bytes = disk.rate_bytes.value.limit().map(Bytes::get).map(limit);
    let requests = disk.rate_ops.value.limit().map(u64::from).map(limit);
    let limiter = Limiter::new(bytes, requests);
    let model = Blk::new(dma, shape, &disk.serial.value, host, limiter).map_err(failed)?;
    Ok(Box::new(model))
}

/// Takes a lock that somebody may be about to let go.
fn claim(file: &File, lock: FlockOperation) -> Result<(), Errno> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flock(file, lock) {
            Err(Errno::AGAIN) if Instant::now() < deadline => sleep(NAP),
            result => return result,
        }
    }
}
