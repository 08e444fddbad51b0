//! `[vsock.NAME]`

use crate::config::ConfigError;
use crate::config::devices::Vsock;
use crate::config::raw::DeviceTable;
use crate::config::schema;

use super::super::place::socket;
use super::super::read::{setting, text};
use super::read::{integer, required};

/// The first context ID that is a guest's: those below are the hypervisor's, the loopback's and the host's.
const FIRST: u32 = 3;

/// The last one: the one above is `VMADDR_CID_ANY`.
const LAST: u32 = u32::MAX - 1;

pub(super) fn vsock(table: &DeviceTable) -> Result<Vsock, ConfigError> {
    let raw = &table.keys;
    let key = &schema::VSOCK_SOCKET;
    Ok(Vsock {
        cid: setting(raw, &schema::VSOCK_CID, FIRST, |written| {
            integer(written, &schema::VSOCK_CID, (FIRST.into(), LAST.into()))
        })?,
        socket: required(table, key, "set it to the path of a socket to listen on", |written| {
            socket(raw, written, text(written, key)?, key)
        })?,
    })
}
