//! `[pmem.NAME]`

use crate::config::devices::{Device, DeviceKind, Pmem, Sharing};
use crate::config::machine::{Backing, Memory, Setting};
use crate::config::raw::DeviceTable;
use crate::config::schema;
use crate::config::{Bytes, ConfigError, Host, RamRange, pmem_ranges};

use super::super::read::{keyword, setting};
use super::backing_file::{Needs, backing_file};
use super::read::required;

/// What a guest maps persistent memory by.
const UNIT: Bytes = Bytes::mib(2);

/// The memory of `table`, behind that of `before`.
pub(super) fn pmem(
    table: &DeviceTable,
    memory: &Memory,
    before: &[Device],
    host: Host,
) -> Result<Pmem, ConfigError> {
    let raw = &table.keys;
    let sharing = setting(raw, &schema::PMEM_SHARING, Sharing::Private, |w| {
        keyword(w, Sharing::ALL, Sharing::as_str)
    })?;
    let needs = Needs { writable_or: None, block_device: false, unit: UNIT };
    let missing = "set it to the path of a file";
    let found = required(table, &schema::PMEM_FILE, missing, |written| {
        if memory.backing.value == Backing::Hugetlb {
            return Err(
                "memory.backing is hugetlb, which has no 4 KiB pages, as a file's need them (try \"auto\")".into()
            );
        }
        let file = backing_file(raw, &schema::PMEM_FILE, written, &needs)?;
        let range = place(memory, before, file.bytes);
        let range = range.filter(|range| range.end() <= host.address_limit());
        let none = || {
            format!(
                "its {} behind memory.size, {}, are more than addresses of {} bits reach",
                file.bytes, memory.size.value, host.phys_bits
            )
        };
        let range = range.ok_or_else(none)?;
        Ok((file, range))
    })?;
    let Setting { value: (file, range), origin } = found;
    Ok(Pmem { file: Setting { value: file, origin }, sharing, range })
}

/// Where `bytes` lie behind what `before` has, if there is a place.
fn place(memory: &Memory, before: &[Device], bytes: Bytes) -> Option<RamRange> {
    let sizes = before.iter().filter_map(|device| match &device.kind {
        DeviceKind::Pmem(pmem) => Some(pmem.file.value.bytes),
        _ => None,
    });
    let count = sizes.clone().count();
    pmem_ranges(memory.size.value, sizes.chain([bytes])).nth(count)
}
