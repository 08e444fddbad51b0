//! The memory map that the guest is told, in the terms both protocols share.
//!
//! E820 types 1 and 2 (ACPI specification, "System Address Map Interfaces") are also PVH's `XEN_HVM_MEMMAP_TYPE_*`.

use super::BootError;
use super::layout::{EBDA, HIGH_MEMORY, RamLayout};

/// What a range of the map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Free for the guest.
    Ram,
    /// Not to be touched, whether or not RAM lies behind it.
    Reserved,
}

impl RangeKind {
    /// The number both protocols use for it.
    pub const fn code(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// An entry of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// Sorted, without overlaps or empty entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    entries: Vec<MapEntry>,
}

impl MemoryMap {
    /// The map of a machine with `ram`: all of it, but for the EBDA and the firmware area up to 1 MiB.
    pub fn of(ram: RamLayout) -> Self {
        let mut map = Self::default();
        for region in ram.regions() {
            map.set(region.start.0, region.end(), RangeKind::Ram);
        }
        map.set(EBDA.0, HIGH_MEMORY, RangeKind::Reserved);
        map
    }

    /// Makes `start..end` of this kind, whatever it was before. Nothing happens when it is empty.
    pub fn set(&mut self, start: u64, end: u64, kind: RangeKind) {
        if start >= end {
            return;
        }
        let mut entries = Vec::with_capacity(self.entries.len() + 2);
        for old in self.entries.drain(..) {
            entries.extend([
                MapEntry { end: old.end.min(start), ..old },
                MapEntry { start: old.start.max(end), ..old },
            ]);
        }
        entries.push(MapEntry { start, end, kind });
        entries.retain(|entry| entry.start < entry.end);
        entries.sort_by_key(|entry| entry.start);
        self.entries = entries;
    }

    /// The entries in address order.
    ///
    /// # Errors
    /// [`BootError::MemoryMapFull`] when there are more than `max`.
    pub fn entries(&self, max: usize) -> Result<&[MapEntry], BootError> {
        let entries = self.entries.len();
        if entries > max {
            return Err(BootError::MemoryMapFull { entries, max });
        }
        Ok(&self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::RangeKind::{Ram, Reserved};
    use super::*;

    fn entry(start: u64, end: u64, kind: RangeKind) -> MapEntry {
        MapEntry { start, end, kind }
    }

    #[test]
    fn a_machine_with_ram_above_4_gib_has_four_entries() {
        let map = MemoryMap::of(RamLayout::new(4 << 30).unwrap());
        let expected = [
            entry(0, 0x9_fc00, Ram),
            entry(0x9_fc00, 0x10_0000, Reserved),
            entry(0x10_0000, 0xc000_0000, Ram),
            entry(0x1_0000_0000, 0x1_4000_0000, Ram),
        ];
        assert_eq!(map.entries(4).unwrap(), expected);
        assert!(map.entries(3).is_err());
    }

    #[test]
    fn a_later_range_wins_over_what_it_covers() {
        let mut map = MemoryMap::default();
        map.set(0, 100, Ram);
        map.set(40, 60, Reserved);
        map.set(50, 55, Ram);
        map.set(70, 70, Reserved);
        map.set(90, 120, Reserved);
        let expected = [
            entry(0, 40, Ram),
            entry(40, 50, Reserved),
            entry(50, 55, Ram),
            entry(55, 60, Reserved),
            entry(60, 90, Ram),
            entry(90, 120, Reserved),
        ];
        assert_eq!(map.entries(9).unwrap(), expected);
        map.set(0, 200, Ram);
        assert_eq!(map.entries(9).unwrap(), [entry(0, 200, Ram)]);
    }
}
