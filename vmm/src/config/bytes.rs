//! Sizes in bytes, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A size in bytes.
///
/// Parses `4096`, `0x1000`, `4K`, `4KiB`, `4 KiB`; `Display` gives the largest unit that divides it: `4 KiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Bytes(u64);

/// Units from large to small: letter, shift.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl Bytes {
    /// `n` bytes.
    pub const fn new(n: u64) -> Self {
        Bytes(n)
    }

    /// `n` KiB. Panics where that overflows: for constants.
    pub const fn kib(n: u64) -> Self {
        Bytes(n * (1 << 10))
    }

    /// `n` MiB. Panics where that overflows: for constants.
    pub const fn mib(n: u64) -> Self {
        Bytes(n * (1 << 20))
    }

    /// `n` GiB. Panics where that overflows: for constants.
    pub const fn gib(n: u64) -> Self {
        Bytes(n * (1 << 30))
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether this is a whole number of `unit`s.
    pub const fn is_multiple_of(self, unit: Bytes) -> bool {
        self.0.is_multiple_of(unit.0)
    }

    /// The next multiple of `unit`, or none if it does not fit into 64 bits.
    pub fn checked_round_up(self, unit: Bytes) -> Option<Bytes> {
        self.0.checked_next_multiple_of(unit.0).map(Bytes)
    }

    /// As it is written in a config: `64M`, `4097`.
    pub fn short(self) -> String {
        match self.unit() {
            Some((letter, shift)) => format!("{}{letter}", self.0 >> shift),
            None => self.0.to_string(),
        }
    }

    /// The largest unit that divides this size.
    fn unit(self) -> Option<(char, u32)> {
        UNITS.into_iter().find(|&(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit() {
            Some((letter, shift)) => write!(f, "{} {letter}iB", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseBytesError {
    /// No number, or something other than K, M, G or T behind it.
    #[error("it must be a number of bytes, or a number with K, M, G or T behind it")]
    Malformed,
    /// A sign in front.
    #[error("it must not be negative")]
    Negative,
    /// 2^64 bytes or more.
    #[error("it must be less than 2^64 bytes")]
    TooLarge,
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.starts_with('-') {
            return Err(ParseBytesError::Negative);
        }
        let (number, shift) = split_unit(text);
        let (digits, radix) = match number.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (number, 10),
        };
        // `from_str_radix` takes a leading plus sign.
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            return Err(ParseBytesError::Malformed);
        }
        let count = u64::from_str_radix(digits, radix).map_err(|_| ParseBytesError::TooLarge)?;
        count.checked_mul(1 << shift).map(Bytes).ok_or(ParseBytesError::TooLarge)
    }
}

/// Cuts the unit off: `4 KiB` is `4` and 10.
fn split_unit(text: &str) -> (&str, u32) {
    let stem = text.strip_suffix("iB").unwrap_or(text);
    for (letter, shift) in UNITS {
        if let Some(number) = stem.strip_suffix([letter, letter.to_ascii_lowercase()]) {
            return (number.trim_end(), shift);
        }
    }
    (text, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4 KiB", 4096),
            ("64M", 64 << 20),
            ("3G", 3 << 30),
            ("1T", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_the_reason() {
        for text in ["", "K", "0x", "4X", "4 B", "4iB", "1.5G", "+4", "4K4", "٤"] {
            assert_eq!(text.parse::<Bytes>(), Err(ParseBytesError::Malformed), "{text}");
        }
        assert_eq!("-1".parse::<Bytes>(), Err(ParseBytesError::Negative));
        for text in ["18446744073709551616", "99999999T", "16777216T"] {
            assert_eq!(text.parse::<Bytes>(), Err(ParseBytesError::TooLarge), "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same_size() {
        for bytes in [1, 4096, 4097, 63 << 10, 64 << 20, 3 << 30, 1 << 40].map(Bytes) {
            assert_eq!(bytes.short().parse(), Ok(bytes));
            let shown = bytes.to_string();
            assert_eq!(shown.trim_end_matches(" bytes").parse(), Ok(bytes));
        }
        assert_eq!(Bytes::mib(64).to_string(), "64 MiB");
        assert_eq!(Bytes::new(0).to_string(), "0 bytes");
    }

    #[test]
    fn rounding_up_stops_at_64_bits() {
        assert_eq!(Bytes::new(1).checked_round_up(Bytes::mib(2)), Some(Bytes::mib(2)));
        assert_eq!(Bytes::new(u64::MAX).checked_round_up(Bytes::mib(2)), None);
    }
}
