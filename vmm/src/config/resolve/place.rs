//! Where something is going to be made: a file to write, a socket to listen on.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::config::HostPath;
use crate::config::error::quoted;
use crate::config::file::{describe, reason};
use crate::config::raw::{Raw, Written};
use crate::config::schema::Key;

use super::read::must_be;

/// A Unix socket's address has 108 bytes (`sun_path`), the last one NUL.
const LONGEST_SOCKET: usize = 107;

/// The file `name` that is going to be written, as a part of `key`'s value or all of it.
pub(super) fn file_to_write(
    raw: &Raw,
    written: &Written,
    name: &str,
    key: &Key,
) -> Result<HostPath, String> {
    if name.is_empty() {
        return Err(must_be(key));
    }
    let path = raw.beside(written, name);
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => {
            return Err("it must name a file, and this is a directory".into());
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => require_folder(&path)?,
        Err(error) => return Err(reason(&error)),
    }
    Ok(HostPath(path))
}

/// The socket `name` that is going to be made, likewise. One that is there may be stale, or the one that somebody asks for.
pub(super) fn socket(
    raw: &Raw,
    written: &Written,
    name: &str,
    key: &Key,
) -> Result<HostPath, String> {
    if name.is_empty() {
        return Err(must_be(key));
    }
    let path = raw.beside(written, name);
    let length = path.as_os_str().len();
    if length > LONGEST_SOCKET {
        return Err(format!(
            "it must be at most {LONGEST_SOCKET} bytes with its folder, not {length}"
        ));
    }
    match fs::metadata(&path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(found) => {
            let what = describe(found.file_type()).unwrap_or("a file");
            return Err(format!("it must name a socket or nothing, and this is {what}"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => require_folder(&path)?,
        Err(error) => return Err(reason(&error)),
    }
    Ok(HostPath(path))
}

/// The folder that `path` is going to be in must be there.
fn require_folder(path: &Path) -> Result<(), String> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if folder.is_dir() {
        return Ok(());
    }
    Err(format!("there is no folder {}", quoted(&folder.to_string_lossy())))
}
