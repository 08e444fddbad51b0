//! Why a side gives up, in words for the other side's operator.

use std::fmt;

use super::{MOST_REASON, WireError};

/// A sentence of at most [`MOST_REASON`] bytes. Shown, it has no control characters: it comes from the other side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason(String);

impl Reason {
    /// `text`, cut at the limit.
    pub fn new(text: impl fmt::Display) -> Reason {
        let mut text = text.to_string();
        text.truncate(text.floor_char_boundary(MOST_REASON));
        Reason(text)
    }

    /// As it was sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Reason, WireError> {
        let text = str::from_utf8(bytes).map_err(|_| WireError::Text("reason"))?;
        let (length, limit) = (bytes.len() as u64, MOST_REASON as u64);
        if length > limit {
            return Err(WireError::TooLong { what: "reason", length, limit });
        }
        Ok(Reason(text.to_owned()))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| {
            if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") }
        })
    }
}
