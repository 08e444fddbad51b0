//! Guard ranges: guest-physical memory that a guest must not touch.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{Bytes, ram_ranges};

/// The unit that guards are made of.
const PAGE: Bytes = Bytes::kib(4);

/// A range of guest-physical addresses, written `GPA+LENGTH`. Aligned to 4 KiB, not empty, and its end fits into 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard {
    start: u64,
    length: Bytes,
}

impl Guard {
    /// Reads `0x2000000+4K`. The error says what is wrong, as the end of a sentence.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (start, length) =
            text.split_once('+').ok_or("a guard must be GPA+LENGTH, as in \"0x2000000+4K\"")?;
        let start: Bytes = start.parse().map_err(|e| format!("its address: {e}"))?;
        let length: Bytes = length.parse().map_err(|e| format!("its length: {e}"))?;
        if !start.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) {
            return Err(format!("address and length must be multiples of {PAGE}"));
        }
        if length.get() == 0 {
            return Err("its length must not be 0".into());
        }
        if start.get().checked_add(length.get()).is_none() {
            return Err("it must end below 2^64".into());
        }
        Ok(Guard { start: start.get(), length })
    }

    /// The first guest-physical address, a multiple of 4 KiB.
    pub fn start(self) -> u64 {
        self.start
    }

    /// The length, a multiple of 4 KiB and not 0.
    pub fn length(self) -> Bytes {
        self.length
    }

    /// The first address behind it.
    pub fn end(self) -> u64 {
        self.start + self.length.get()
    }

    /// Whether all of it lies in one piece of a guest's RAM of this size.
    pub(super) fn lies_in_ram(self, size: Bytes) -> bool {
        ram_ranges(size).any(|ram| ram.start <= self.start && self.end() <= ram.end())
    }

    /// Whether the two have an address in common.
    pub(super) fn overlaps(self, other: Guard) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{}", self.start, self.length.short())
    }
}

impl Serialize for Guard {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(text: &str) -> Guard {
        Guard::parse(text).unwrap()
    }

    #[test]
    fn a_guard_reads_back_as_it_is_shown() {
        let one = guard("0x2000000+4K");
        assert_eq!((one.start(), one.end()), (0x200_0000, 0x200_1000));
        assert_eq!(one.to_string(), "0x2000000+4K");
        assert_eq!(guard("32M + 4096"), one);
    }

    #[test]
    fn crooked_guards_are_refused() {
        for (text, says) in [
            ("0x2000000", "GPA+LENGTH"),
            ("x+4K", "its address"),
            ("0x1000+", "its length"),
            ("0x1001+4K", "multiples of 4 KiB"),
            ("0x1000+1K", "multiples of 4 KiB"),
            ("0x1000+0", "must not be 0"),
            ("0xfffffffffffff000+4K", "below 2^64"),
        ] {
            let error = Guard::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn the_hole_is_not_ram_and_a_guard_does_not_span_it() {
        let size = Bytes::gib(4);
        assert!(guard("0xbffff000+4K").lies_in_ram(size));
        assert!(!guard("0xbffff000+8K").lies_in_ram(size));
        assert!(!guard("0xc0000000+4K").lies_in_ram(size));
        assert!(!guard("0xbffff000+1026M").lies_in_ram(size));
        assert!(guard("0x13ffff000+4K").lies_in_ram(size));
        assert!(!guard("0x140000000+4K").lies_in_ram(size));
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(!guard("0x1000+4K").overlaps(guard("0x2000+4K")));
        assert!(guard("0x1000+8K").overlaps(guard("0x2000+4K")));
    }
}
