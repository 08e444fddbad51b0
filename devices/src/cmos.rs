//! The MC146818 real-time clock and its CMOS RAM, at ports 0x70 (index) and 0x71 (data).
//!
//! Register numbers and bits follow the MC146818 data sheet; the memory-size bytes are the PC/AT convention as firmware for
//! virtual machines extends it. The clock is the host's, in UTC, BCD and 24-hour mode; the guest cannot set it and gets no
//! interrupts from it (alarm bytes are plain RAM).

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::{BusDevice, PioRange, Request};

/// The index port; data is the next one.
pub const INDEX_PORT: u64 = 0x70;

/// Both ports.
pub const RANGE: PioRange = PioRange::fixed(INDEX_PORT, 2);

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Where PC firmware keeps the century, BCD.
const CENTURY: u8 = 0x32;

/// Status A: a time base of 32,768 Hz, the periodic rate at its reset value.
const A_DIVIDER: u8 = 0x26;
/// Status A: the time registers are about to change.
const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// How long before the second turns the bit is set: a reader that sees it clear has at least this long.
const UPDATE_WINDOW: Duration = Duration::from_micros(244);
/// Status B: 24-hour mode; the binary-mode bit is clear, so BCD.
const B_24_HOURS: u8 = 1 << 1;
/// Status D: the battery is good, RAM and time are valid.
const D_VALID: u8 = 1 << 7;

/// Bit 7 of the index is the NMI mask.
const INDEX_MASK: u8 = 0x7f;
const RAM_BYTES: usize = 0x80;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// RAM as the CMOS describes it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySizes {
    /// RAM below 4 GiB, from address 0 up to the MMIO hole.
    pub below_4g: u64,
    /// RAM from 4 GiB on.
    pub above_4g: u64,
}

/// What is kept of a CMOS when its machine is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CmosState {
    /// The register that the data port shows.
    pub index: u8,
    /// Its RAM.
    pub ram: Vec<u8>,
}

/// Tells the time since the Unix epoch.
type Clock = Box<dyn Fn() -> Duration + Send>;

/// The clock and its RAM.
pub struct Cmos {
    index: u8,
    ram: [u8; RAM_BYTES],
    clock: Clock,
}

impl fmt::Debug for Cmos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cmos").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Cmos {
    /// A CMOS that follows the host's clock.
    pub fn new(memory: MemorySizes) -> Self {
        // A host clock before 1970 reads as 1970.
        Self::with_clock(memory, || {
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
        })
    }

    /// A CMOS that follows `clock`, which returns UTC as the time since the Unix epoch. For tests and replay.
    pub fn with_clock(memory: MemorySizes, clock: impl Fn() -> Duration + Send + 'static) -> Self {
        let mut ram = [0; RAM_BYTES];
        let base_kib = (memory.below_4g / KIB).min(640);
        let extended_kib = memory.below_4g.saturating_sub(MIB) / KIB;
        let above_16m = memory.below_4g.saturating_sub(16 * MIB) / (64 * KIB);
        let above_4g = memory.above_4g / (64 * KIB);
        store(&mut ram[0x15..=0x16], base_kib);
        store(&mut ram[0x17..=0x18], extended_kib);
        store(&mut ram[0x30..=0x31], extended_kib);
        store(&mut ram[0x34..=0x35], above_16m);
        store(&mut ram[0x5b..=0x5d], above_4g);
        Self { index: 0, ram, clock: Box::new(clock) }
    }

    /// What it is, but for the time.
    pub fn save(&self) -> CmosState {
        CmosState { index: self.index, ram: self.ram.to_vec() }
    }

    /// Becomes what `state` says; the time stays the host's.
    ///
    /// # Errors
    /// A sentence: it is no state of a CMOS.
    pub fn restore(&mut self, state: &CmosState) -> Result<(), String> {
        let bytes = state.ram.len();
        self.ram = <[u8; RAM_BYTES]>::try_from(&*state.ram)
            .map_err(|_| format!("the CMOS: {bytes} bytes of RAM were saved, not {RAM_BYTES}"))?;
        self.index = state.index & INDEX_MASK;
        Ok(())
    }

    fn register(&self) -> u8 {
        let now = (self.clock)();
        let utc = Utc::from_epoch(now.as_secs());
        match self.index {
            SECONDS => bcd(utc.second),
            MINUTES => bcd(utc.minute),
            HOURS => bcd(utc.hour),
            DAY_OF_WEEK => bcd(utc.weekday),
            DAY => bcd(utc.day),
            MONTH => bcd(utc.month),
            YEAR => bcd((utc.year % 100) as u8),
            CENTURY => bcd((utc.year / 100 % 100) as u8),
            STATUS_A => {
                let left = Duration::from_secs(1)
                    .saturating_sub(Duration::from_nanos(now.subsec_nanos().into()));
                A_DIVIDER | if left <= UPDATE_WINDOW { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            STATUS_B => B_24_HOURS,
            STATUS_C => 0,
            STATUS_D => D_VALID,
            index => self.ram.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The index port cannot be read back; what stays all ones is what a PC returns.
        for (port, byte) in (offset..).zip(data) {
            if port == 1 {
                *byte = self.register();
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        // A two-byte write sets the index and then the data, as on an 8-bit bus.
        for (port, &byte) in (offset..).zip(data) {
            if port == 0 {
                self.index = byte & INDEX_MASK;
            } else if let Some(cell) = self.ram.get_mut(usize::from(self.index)) {
                // Clock and status registers are never read from RAM, so a write to them is lost here.
                *cell = byte;
            }
        }
        None
    }
}

/// Stores `value` little-endian, at the largest value that fits when it does not.
fn store(bytes: &mut [u8], value: u64) {
    let most = (1 << (8 * bytes.len())) - 1;
    let value = value.min(most).to_le_bytes();
    bytes.copy_from_slice(&value[..bytes.len()]);
}

/// Two decimal digits. `value` is below 100.
const fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}

/// A moment in the Gregorian calendar.
#[derive(Debug, PartialEq, Eq)]
struct Utc {
    year: u64,
    /// 1..=12
    month: u8,
    /// 1..=31
    day: u8,
    /// 1..=7, Sunday is 1, as the data sheet has it.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Utc {
    fn from_epoch(seconds: u64) -> Self {
        const DAY: u64 = 86_400;
        /// 1970-01-01 was a Thursday.
        const EPOCH_WEEKDAY: u64 = 4;

        let mut days = seconds / DAY;
        let weekday = (days + EPOCH_WEEKDAY) % 7 + 1;
        // Whole 400-year cycles first, so that the loops below are short whatever the clock says.
        const DAYS_IN_400_YEARS: u64 = 146_097;
        let mut year = 1970 + days / DAYS_IN_400_YEARS * 400;
        days %= DAYS_IN_400_YEARS;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let mut month = 1;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        let of_day = seconds % DAY;
        Self {
            year,
            month,
            day: days as u8 + 1,
            weekday: weekday as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

const fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

const fn days_in_month(year: u64, month: u8) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests;
