//! `[disk.NAME]`

use std::path::Path;

use devices::dma::Pinning;
use devices::virtio::blk::Blk;
use devices::virtio::blk::host::{Engine, host, open};
use devices::virtio::blk::wire::{SECTOR, Shape};
use devices::virtio::rate::{Limit, Limiter};

use crate::config::{Bytes, Disk, DiskIo};
use crate::machine::MachineError;

use super::{Boxed, Claim};

/// The disk that `disk` describes, and the claim on its file, which is made if `claims_now`.
pub(super) fn model(
    name: &str,
    disk: &Disk,
    dma: &Pinning,
    claims_now: bool,
) -> Result<(Boxed, Claim), MachineError> {
    let path: &Path = &disk.file.value.path;
    let failed = |source| MachineError::Device {
        key: format!("disk.{name}.file"),
        path: path.to_owned(),
        source,
    };
    let read_only = disk.readonly.value;
    let file = open(path, read_only).map_err(failed)?;
    let claim = Claim::new(&file, path, read_only).map_err(failed)?;
    if claims_now {
        claim.make().map_err(failed)?;
    }
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
    Ok((Box::new(model), claim))
}
