//! `[rng.NAME]`

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::config::ConfigError;
use crate::config::HostPath;
use crate::config::devices::Rng;
use crate::config::error::quoted;
use crate::config::file::{describe, reason};
use crate::config::raw::{Raw, Written};
use crate::config::schema;

use super::super::read::{must_be, setting, text};
use super::read::byte_rate;

pub(super) fn rng(raw: &Raw) -> Result<Rng, ConfigError> {
    let urandom = HostPath("/dev/urandom".into());
    Ok(Rng {
        source: setting(raw, &schema::RNG_SOURCE, urandom, |written| source(raw, written))?,
        rate_bytes: byte_rate(raw, &schema::RNG_RATE_BYTES)?,
    })
}

/// Not opened here: that may take from a device what it has little of.
fn source(raw: &Raw, written: &Written) -> Result<HostPath, String> {
    let name = text(written, &schema::RNG_SOURCE)?;
    if name.is_empty() {
        return Err(must_be(&schema::RNG_SOURCE));
    }
    let path = raw.beside(written, name);
    let at = quoted(&path.to_string_lossy());
    let kind = match fs::metadata(&path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("there is no file {at}"));
        }
        Err(error) => return Err(format!("{at} cannot be used: {}", reason(&error))),
    };
    if !kind.is_char_device() && !kind.is_file() {
        let what = if kind.is_block_device() { Some("a block device") } else { describe(kind) };
        let what = what.unwrap_or("a file");
        return Err(format!("{at} is {what}, and it must be a character device or a regular file"));
    }
    accessat(CWD, &path, Access::READ_OK, AtFlags::EACCESS)
        .map_err(|error| format!("{at} cannot be read: {}", reason(&error.into())))?;
    Ok(HostPath(path))
}
