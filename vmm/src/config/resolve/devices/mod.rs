//! The tables of devices.

mod backing_file;
mod balloon;
mod disk;
mod hvc;
mod net;
mod pmem;
mod read;
mod rng;
mod vsock;

use crate::config::devices::{Device, DeviceKind, Family};
use crate::config::machine::{Console, Memory};
use crate::config::raw::{DeviceTable, Document};
use crate::config::{ConfigError, Host, Problem};

/// What a machine's bus has room for.
const MOST: usize = 16;

/// The devices, in the order in which they stand.
pub(super) fn devices(
    document: &Document,
    memory: &Memory,
    console: &Console,
    host: Host,
) -> Result<Vec<Device>, ConfigError> {
    let tables = &document.devices;
    if let Some(one_too_many) = tables.get(MOST) {
        let rule = format!("a machine has at most {MOST} devices");
        return Err(one_too_many.fail(Problem::TooMany(rule)));
    }
    let mut devices = Vec::new();
    for (at, table) in tables.iter().enumerate() {
        only_one(table, &tables[..at])?;
        let keys = &table.keys;
        let kind = match table.family {
            Family::Disk => DeviceKind::Disk(disk::disk(table)?),
            Family::Net => DeviceKind::Net(net::net(table)?),
            Family::Rng => DeviceKind::Rng(rng::rng(keys)?),
            Family::Hvc => DeviceKind::Hvc(hvc::hvc(table, console, &devices)?),
            Family::Balloon => DeviceKind::Balloon(balloon::balloon(keys, memory)?),
            Family::Pmem => DeviceKind::Pmem(pmem::pmem(table, memory, &devices, host)?),
            Family::Vsock => DeviceKind::Vsock(vsock::vsock(table)?),
        };
        devices.push(Device { name: table.name.clone(), origin: table.origin, kind });
    }
    Ok(devices)
}

/// Of some families a guest drives one device.
fn only_one(table: &DeviceTable, before: &[DeviceTable]) -> Result<(), ConfigError> {
    if !matches!(table.family, Family::Balloon | Family::Vsock) {
        return Ok(());
    }
    match before.iter().find(|other| other.family == table.family) {
        Some(other) => Err(table.fail(Problem::TooMany(format!(
            "a machine has at most one {}, and {} is there ({})",
            table.family,
            other.path(),
            other.origin
        )))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
