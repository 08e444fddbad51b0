//! `[pmem.NAME]`

use crate::config::devices::{Pmem, Sharing};
use crate::config::raw::DeviceTable;
use crate::config::schema;
use crate::config::{Bytes, ConfigError};

use super::super::read::{keyword, setting};
use super::backing_file::{Needs, backing_file};
use super::read::required;

/// What a guest maps persistent memory by.
const UNIT: Bytes = Bytes::mib(2);

pub(super) fn pmem(table: &DeviceTable) -> Result<Pmem, ConfigError> {
    let raw = &table.keys;
    let sharing = setting(raw, &schema::PMEM_SHARING, Sharing::Private, |w| {
        keyword(w, Sharing::ALL, Sharing::as_str)
    })?;
    let needs = Needs {
        writable_or: (sharing.value == Sharing::Shared).then_some("sharing = \"private\""),
        block_device: false,
        unit: UNIT,
    };
    let file = required(table, &schema::PMEM_FILE, "set it to the path of a file", |written| {
        backing_file(raw, &schema::PMEM_FILE, written, &needs)
    })?;
    Ok(Pmem { file, sharing })
}
