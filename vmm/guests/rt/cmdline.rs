//! The command line: `key=value` words. Unknown keys are somebody else's; the last of equal keys counts.

use core::fmt;

/// A command line.
#[derive(Clone, Copy)]
pub struct Cmdline<'a>(pub &'a str);

/// A value that its key cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadValue<'a> {
    /// The key.
    pub key: &'static str,
    /// What was given.
    pub value: &'a str,
    /// What would have been understood.
    pub expected: Expected,
}

/// What a key can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// In words.
    Words(&'static str),
    /// A number from the first to the second.
    Number(u64, u64),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Expected::Words(words) => f.write_str(words),
            Expected::Number(min, u64::MAX) => write!(f, "a number from {min}"),
            Expected::Number(min, max) => write!(f, "a number from {min} to {max}"),
        }
    }
}

impl fmt::Display for BadValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}: expected {}", self.key, self.value, self.expected)
    }
}

impl<'a> Cmdline<'a> {
    /// The value of `key`.
    pub fn get(self, key: &'static str) -> Option<&'a str> {
        self.all(key).next_back()
    }

    /// Every value of `key`, in order.
    pub fn all(self, key: &'static str) -> impl DoubleEndedIterator<Item = &'a str> {
        let words = self.0.split_ascii_whitespace();
        words.filter_map(move |word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The value of `key` as a number: decimal or 0x, with K, M or G for powers of 1024.
    pub fn number(self, key: &'static str) -> Result<Option<u64>, BadValue<'a>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match parse(value) {
            Some(n) => Ok(Some(n)),
            None => Err(BadValue { key, value, expected: Expected::Number(0, u64::MAX) }),
        }
    }

    /// The value of `key` as a number from `min` to `max`; `default` if there is no such key.
    pub fn number_in(
        self,
        key: &'static str,
        min: u64,
        max: u64,
        default: u64,
    ) -> Result<u64, BadValue<'a>> {
        match self.number(key)? {
            None => Ok(default),
            Some(n) if (min..=max).contains(&n) => Ok(n),
            Some(_) => {
                let value = self.get(key).unwrap_or("");
                Err(BadValue { key, value, expected: Expected::Number(min, max) })
            }
        }
    }

    /// The value of `key` as 0 or 1.
    pub fn switch(self, key: &'static str, default: bool) -> Result<bool, BadValue<'a>> {
        self.choice(key, &[("0", false), ("1", true)], default, "0 or 1")
    }

    /// The value of `key` as one of `choices`.
    pub fn choice<T: Copy>(
        self,
        key: &'static str,
        choices: &[(&str, T)],
        default: T,
        expected: &'static str,
    ) -> Result<T, BadValue<'a>> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        match choices.iter().find(|(name, _)| *name == value) {
            Some((_, choice)) => Ok(*choice),
            None => Err(BadValue { key, value, expected: Expected::Words(expected) }),
        }
    }
}

/// A number: decimal or 0x, with K, M or G for powers of 1024.
pub(crate) fn parse(value: &str) -> Option<u64> {
    let (digits, shift) = match value.as_bytes().last()? {
        b'K' | b'k' => (&value[..value.len() - 1], 10),
        b'M' | b'm' => (&value[..value.len() - 1], 20),
        b'G' | b'g' => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let n = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse::<u64>().ok()?,
    };
    n.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words_and_the_last_one_counts() {
        let line = Cmdline("xexit=1 exit=2 exitx=3 exit=4  then=halt");
        assert_eq!(line.get("exit"), Some("4"));
        assert_eq!(line.get("then"), Some("halt"));
        assert_eq!(line.get("the"), None);
    }

    #[test]
    fn numbers_are_decimal_hex_or_sized() {
        let line = Cmdline("a=12 b=0x1f c=64M d=0x10K e=- f=99999999999G g=");
        assert_eq!(line.number("a"), Ok(Some(12)));
        assert_eq!(line.number("b"), Ok(Some(0x1f)));
        assert_eq!(line.number("c"), Ok(Some(64 << 20)));
        assert_eq!(line.number("d"), Ok(Some(0x4000)));
        assert_eq!(line.number("z"), Ok(None));
        for key in ["e", "f", "g"] {
            assert!(line.number(key).is_err(), "{key}");
        }
    }

    #[test]
    fn a_bad_value_says_what_would_do() {
        let bad = Cmdline("zero=yes").switch("zero", true).unwrap_err();
        assert_eq!(bad.to_string(), "zero=yes: expected 0 or 1");
        let bad = Cmdline("exit=256").number_in("exit", 0, 255, 0).unwrap_err();
        assert_eq!(bad.to_string(), "exit=256: expected a number from 0 to 255");
    }
}
