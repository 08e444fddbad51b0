//! Reading a config from disk, and from nothing that only looks like a file.

use std::fs::{self, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::{Bytes, ConfigError, Origin, Problem};

/// No config comes near this.
const LARGEST: Bytes = Bytes::mib(1);

/// The text of the config at `path`.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let fail = |problem| ConfigError {
        file: path.to_owned(),
        origin: Origin::Default,
        key: None,
        problem,
    };
    let bytes = read_bytes(path).map_err(fail)?;
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..offset];
        let line_start = before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&before[line_start..]);
        ConfigError {
            origin: Origin::File {
                line: 1 + before.iter().filter(|&&b| b == b'\n').count() as u32,
                column: 1 + text.chars().count() as u32,
            },
            ..fail(Problem::NotUtf8 { offset })
        }
    })
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, Problem> {
    // Looked at before it is opened: opening a FIFO waits for its other end, and opening a device may do anything.
    require_regular(fs::metadata(path).map_err(unreadable)?.file_type())?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(unreadable)?;
    // And again: what was looked at may have been replaced since.
    require_regular(file.metadata().map_err(unreadable)?.file_type())?;
    // The length is not asked for: it may change, and files of /proc have none. One byte over the limit tells enough.
    let mut bytes = Vec::new();
    file.take(LARGEST.get() + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST.get() {
        return Err(Problem::TooLarge(LARGEST));
    }
    Ok(bytes)
}

fn require_regular(kind: FileType) -> Result<(), Problem> {
    match describe(kind) {
        None => Ok(()),
        Some(what) => Err(Problem::NotRegular(what)),
    }
}

/// What a file is, if it is not a regular one.
pub(super) fn describe(kind: FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_file() => None,
        kind if kind.is_dir() => Some("a directory"),
        kind if kind.is_fifo() => Some("a FIFO"),
        kind if kind.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

/// Takes the error by value for `map_err`.
#[allow(clippy::needless_pass_by_value)]
fn unreadable(error: io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::NotFound => Problem::NoSuchFile,
        _ => Problem::Unreadable(reason(&error)),
    }
}

/// The system's words for an error, without its number.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}
