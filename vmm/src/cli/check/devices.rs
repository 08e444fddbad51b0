//! The devices of a machine as text.

use std::fmt;

use super::{fact, line, rate, row};
use crate::config::{
    BackingFile, Balloon, Device, DeviceKind, Disk, Hvc, Net, Pmem, Port, Rng, Setting, Vsock,
};

/// Each device with who named it first, in their order on the bus.
pub(super) fn devices(f: &mut fmt::Formatter<'_>, devices: &[Device]) -> fmt::Result {
    if devices.is_empty() {
        writeln!(f, "\ndevices")?;
        return fact(f, "none", "");
    }
    for device in devices {
        writeln!(f, "\n{}.{} ({})", device.kind.family(), device.name, device.origin)?;
        match &device.kind {
            DeviceKind::Disk(disk) => disk_rows(f, disk)?,
            DeviceKind::Net(net) => net_rows(f, net)?,
            DeviceKind::Rng(Rng { source, rate_bytes }) => {
                line(f, "source", source.value.display(), source.origin)?;
                row(f, "rate_bytes", rate_bytes)?;
            }
            DeviceKind::Hvc(hvc) => hvc_rows(f, hvc)?,
            DeviceKind::Balloon(balloon) => balloon_rows(f, balloon)?,
            DeviceKind::Pmem(Pmem { file, sharing, range }) => {
                backing_file(f, file)?;
                let place = format!("{:#x}..{:#x}", range.start, range.end());
                fact(f, "", format_args!("{place} (behind RAM)"))?;
                row(f, "sharing", sharing)?;
            }
            DeviceKind::Vsock(Vsock { cid, socket }) => {
                row(f, "cid", cid)?;
                line(f, "socket", socket.value.display(), socket.origin)?;
            }
        }
    }
    Ok(())
}

fn backing_file(f: &mut fmt::Formatter<'_>, file: &Setting<BackingFile>) -> fmt::Result {
    let BackingFile { path, bytes } = &file.value;
    line(f, "file", format_args!("{} ({bytes})", path.display()), file.origin)
}

fn disk_rows(f: &mut fmt::Formatter<'_>, disk: &Disk) -> fmt::Result {
    backing_file(f, &disk.file)?;
    row(f, "readonly", &disk.readonly)?;
    row(f, "io", &disk.io)?;
    row(f, "discard", &disk.discard)?;
    row(f, "queue_size", &disk.queue_size)?;
    row(f, "queues", &disk.queues)?;
    row(f, "rate_bytes", &disk.rate_bytes)?;
    rate(f, "rate_ops", &disk.rate_ops, "requests")?;
    line(f, "serial", format_args!("{:?}", disk.serial.value), disk.serial.origin)
}

fn net_rows(f: &mut fmt::Formatter<'_>, net: &Net) -> fmt::Result {
    line(f, "tap", net.tap.value.escape_debug(), net.tap.origin)?;
    row(f, "mac", &net.mac)?;
    row(f, "queues", &net.queues)?;
    row(f, "queue_size", &net.queue_size)?;
    row(f, "offloads", &net.offloads)
}

fn hvc_rows(f: &mut fmt::Formatter<'_>, hvc: &Hvc) -> fmt::Result {
    let port = &hvc.port;
    match &port.value {
        Port::Stdio => line(f, "port", "stdio", port.origin)?,
        Port::Off => line(f, "port", "off", port.origin)?,
        Port::File(path) => line(f, "port", path.display(), port.origin)?,
        Port::Socket(path) => {
            line(f, "port", format_args!("socket {}", path.display()), port.origin)?;
        }
    }
    row(f, "columns", &hvc.columns)?;
    row(f, "rows", &hvc.rows)
}

fn balloon_rows(f: &mut fmt::Formatter<'_>, balloon: &Balloon) -> fmt::Result {
    row(f, "target", &balloon.target)?;
    row(f, "deflate_on_oom", &balloon.deflate_on_oom)?;
    row(f, "reporting", &balloon.reporting)?;
    let statistics = &balloon.statistics;
    match statistics.value {
        0 => line(f, "statistics", "none", statistics.origin),
        seconds => line(f, "statistics", format_args!("every {seconds} s"), statistics.origin),
    }
}
