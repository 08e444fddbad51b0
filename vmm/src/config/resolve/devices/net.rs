//! `[net.NAME]`

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{self, Path};

use crate::config::ConfigError;
use crate::config::devices::{Mac, Net};
use crate::config::raw::{DeviceTable, Written};
use crate::config::schema;

use super::super::read::{must_be, setting, small_count, text};
use super::read::{queue_size, required, switch};

/// An interface's name has 16 bytes (`IFNAMSIZ`), the last one NUL.
const LONGEST_INTERFACE: usize = 15;

pub(super) fn net(table: &DeviceTable) -> Result<Net, ConfigError> {
    let raw = &table.keys;
    let derived = derived(&raw.file, &table.name);
    Ok(Net {
        tap: required(table, &schema::NET_TAP, "set it to the name of a tap interface", tap)?,
        mac: setting(raw, &schema::NET_MAC, derived, |written| {
            let text = text(written, &schema::NET_MAC)?;
            Mac::parse(text).map_err(|rule| format!("{}: {rule}", must_be(&schema::NET_MAC)))
        })?,
        queues: setting(raw, &schema::NET_QUEUES, 1, |w| small_count(w, &schema::NET_QUEUES))?,
        queue_size: queue_size(raw, &schema::NET_QUEUE_SIZE)?,
        offloads: switch(raw, &schema::NET_OFFLOADS, true)?,
    })
}

/// The address of the interface `name` of the config at `file`, from whichever folder it is named.
fn derived(file: &Path, name: &str) -> Mac {
    let whole = fs::canonicalize(file).or_else(|_| path::absolute(file));
    let whole = whole.unwrap_or_else(|_| file.to_owned());
    Mac::derived(whole.as_os_str().as_bytes(), name)
}

/// A name that the kernel takes as it is: it refuses some, and fills in a `%d`.
fn tap(written: &Written) -> Result<String, String> {
    let name = text(written, &schema::NET_TAP)?;
    let length = name.len();
    if length == 0 || length > LONGEST_INTERFACE {
        return Err(format!("{}, not {length}", must_be(&schema::NET_TAP)));
    }
    let odd = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace() || c.is_control();
    if name == "." || name == ".." || name.contains(odd) {
        return Err("it must be the name of an interface, without /, :, % and spaces".into());
    }
    Ok(name.to_owned())
}
