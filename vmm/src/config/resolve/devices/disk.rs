//! `[disk.NAME]`

use crate::config::devices::{Disk, DiskIo};
use crate::config::machine::Rate;
use crate::config::raw::{DeviceTable, Written};
use crate::config::schema::{self, Key};
use crate::config::{Bytes, ConfigError};

use super::super::read::{keyword, must_be, rate, setting, small_count, text};
use super::backing_file::{Needs, backing_file};
use super::read::{byte_rate, queue_size, required, switch};

/// What a disk's addresses count, whatever its blocks are.
const SECTOR: Bytes = Bytes::new(512);

/// The most of an ID that the guest can read.
const LONGEST_SERIAL: usize = 20;

pub(super) fn disk(table: &DeviceTable) -> Result<Disk, ConfigError> {
    let raw = &table.keys;
    let readonly = switch(raw, &schema::DISK_READONLY, false)?;
    let needs = Needs {
        writable_or: (!readonly.value).then_some("readonly = true"),
        block_device: true,
        unit: SECTOR,
    };
    let missing = "set it to the path of a raw file or a block device";
    let file = required(table, &schema::DISK_FILE, missing, |written| {
        backing_file(raw, &schema::DISK_FILE, written, &needs)
    })?;
    let rate_ops = &schema::DISK_RATE_OPS;
    let short_name: String = table.name.chars().take(LONGEST_SERIAL).collect();
    Ok(Disk {
        file,
        readonly,
        io: setting(raw, &schema::DISK_IO, DiskIo::Auto, |w| {
            keyword(w, DiskIo::ALL, DiskIo::as_str)
        })?,
        discard: switch(raw, &schema::DISK_DISCARD, true)?,
        queue_size: queue_size(raw, &schema::DISK_QUEUE_SIZE)?,
        queues: setting(raw, &schema::DISK_QUEUES, 1, |w| small_count(w, &schema::DISK_QUEUES))?,
        rate_bytes: byte_rate(raw, &schema::DISK_RATE_BYTES)?,
        rate_ops: setting(raw, rate_ops, Rate::Unlimited, |w| {
            rate(w, rate_ops, "nothing would ever be read")
        })?,
        serial: setting(raw, &schema::DISK_SERIAL, short_name, |w| {
            serial(w, &schema::DISK_SERIAL)
        })?,
    })
}

fn serial(written: &Written, key: &Key) -> Result<String, String> {
    let text = text(written, key)?;
    if !text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return Err(must_be(key));
    }
    if text.len() > LONGEST_SERIAL {
        return Err(format!("{}, not {}", must_be(key), text.len()));
    }
    Ok(text.to_owned())
}
