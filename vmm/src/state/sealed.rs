//! Text with a header that says what it is, how long, and what its checksum is: two lines.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::StateError;

/// Bytes of a header at most.
const LONGEST_HEADER: usize = 256;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    slat: String,
    version: u32,
    bytes: usize,
    xxh3: String,
}

/// `body`, which is one line, as a `kind` of `version`.
pub fn seal(kind: &str, version: u32, body: &str) -> Vec<u8> {
    let header =
        Header { slat: kind.into(), version, bytes: body.len(), xxh3: checksum(body.as_bytes()) };
    let header = serde_json::to_string(&header).expect("keys are strings and no value can fail");
    format!("{header}\n{body}\n").into_bytes()
}

/// The body of `bytes`, if they are a `kind` of `version`, and whole.
///
/// # Errors
/// [`StateError`].
pub fn unseal<'b>(kind: &str, version: u32, bytes: &'b [u8]) -> Result<&'b [u8], StateError> {
    let head = &bytes[..bytes.len().min(LONGEST_HEADER)];
    let end = head.iter().position(|&byte| byte == b'\n').ok_or(StateError::Foreign)?;
    let header: Header = serde_json::from_slice(&head[..end]).map_err(|_| StateError::Foreign)?;
    if header.slat != kind {
        return Err(StateError::Foreign);
    }
    if header.version != version {
        return Err(StateError::Version(header.version));
    }
    let body = bytes[end + 1..].strip_suffix(b"\n").unwrap_or_default();
    if body.len() != header.bytes {
        let (has, needs) = (body.len(), header.bytes);
        return Err(StateError::Damaged(format!(
            "{has} bytes are there, and {needs} were written"
        )));
    }
    if checksum(body) != header.xxh3 {
        return Err(StateError::Damaged("its checksum is another".into()));
    }
    Ok(body)
}

/// XXH3-64 of `bytes`, as sixteen hexadecimal digits.
pub fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", XxHash3_64::oneshot(bytes))
}
