//! A file that a device stores in.

use std::fs::{self, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};

use crate::config::Bytes;
use crate::config::HostPath;
use crate::config::devices::BackingFile;
use crate::config::error::quoted;
use crate::config::file::{describe, reason};
use crate::config::raw::{Raw, Written};
use crate::config::schema::Key;

use super::super::read::{must_be, text};

/// What a file has to be.
pub(super) struct Needs {
    /// If it has to be writable: what to set where it is not.
    pub(super) writable_or: Option<&'static str>,
    /// Whether it may be a block device.
    pub(super) block_device: bool,
    /// What its size has to be a multiple of.
    pub(super) unit: Bytes,
}

/// The file that `key` names, with its size.
pub(super) fn backing_file(
    raw: &Raw,
    key: &Key,
    written: &Written,
    needs: &Needs,
) -> Result<BackingFile, String> {
    let name = text(written, key)?;
    if name.is_empty() {
        return Err(must_be(key));
    }
    let path = raw.beside(written, name);
    let at = quoted(&path.to_string_lossy());
    let length = length(&path, &at, needs)?;
    if length == 0 || !length.is_multiple_of(needs.unit.get()) {
        return Err(not_whole(&at, Bytes::new(length), needs.unit));
    }
    if let Some(other) = needs.writable_or {
        accessat(CWD, &path, Access::WRITE_OK, AtFlags::EACCESS).map_err(|error| {
            format!("{at} cannot be written: {} (try {other})", reason(&error.into()))
        })?;
    }
    Ok(BackingFile { path: HostPath(path), bytes: Bytes::new(length) })
}

/// How long the file at `path` is, which messages call `at`.
fn length(path: &Path, at: &str, needs: &Needs) -> Result<u64, String> {
    let unusable = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => format!("there is no file {at}"),
        _ => format!("{at} cannot be used: {}", reason(error)),
    };
    // Looked at before it is opened: opening a FIFO waits for its other end, and opening a device may do anything.
    let kind = fs::metadata(path).map_err(|error| unusable(&error))?.file_type();
    let fits = kind.is_file() || (needs.block_device && kind.is_block_device());
    if !fits {
        let what = describe(kind).unwrap_or("a file");
        let or = if needs.block_device { " or a block device" } else { "" };
        return Err(format!("{at} is {what}, and it must be a regular file{or}"));
    }
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|error| unusable(&error))?;
    // A block device's metadata has no length.
    file.seek(SeekFrom::End(0)).map_err(|error| unusable(&error))
}

/// That a file's size is no multiple of `unit`, and which ones are near.
fn not_whole(at: &str, size: Bytes, unit: Bytes) -> String {
    let below = Bytes::new(size.get() - size.get() % unit.get());
    let above = Bytes::new(below.get().saturating_add(unit.get()));
    let near = match below.get() {
        0 => format!("the nearest is {above}"),
        _ => format!("the nearest are {below} and {above}"),
    };
    format!("{at} has {size}, which is not a multiple of {unit} above 0 ({near})")
}
