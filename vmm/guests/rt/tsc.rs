//! Time, from the time-stamp counter.

use core::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};

use crate::cmdline::{BadValue, Cmdline};

/// The counter now. The fences keep the reading after the loads before it and before what follows (SDM vol. 2B, RDTSC).
pub fn now() -> u64 {
    // SAFETY: SSE2 is part of the target; CR4.TSD is clear (`entry.S`).
    unsafe {
        _mm_lfence();
        let now = _rdtsc();
        _mm_lfence();
        now
    }
}

/// How fast the counter runs, if the monitor or the processor says.
#[derive(Clone, Copy)]
pub struct Frequency {
    khz: Option<u64>,
}

impl Frequency {
    /// From the key `tsc_khz`, else from CPUID.
    pub fn find(cmdline: Cmdline<'static>) -> Result<Frequency, BadValue<'static>> {
        let told = cmdline.number("tsc_khz")?.filter(|&khz| khz != 0);
        Ok(Frequency { khz: told.or_else(from_cpuid) })
    }

    /// Nanoseconds of `cycles`.
    pub fn nanoseconds(self, cycles: u64) -> Option<u64> {
        let ns = u128::from(cycles) * 1_000_000 / u128::from(self.khz?);
        u64::try_from(ns).ok()
    }

    /// Cycles of `milliseconds`; of a counter that runs at 3 GHz if nobody says how fast it is.
    pub fn cycles(self, milliseconds: u64) -> u64 {
        milliseconds.saturating_mul(self.khz.unwrap_or(3_000_000))
    }

    /// When `milliseconds` from now will have gone by.
    pub fn after(self, milliseconds: u64) -> Deadline {
        Deadline(now().saturating_add(self.cycles(milliseconds)))
    }

    /// `count` things in `cycles`, as things a second.
    pub fn per_second(self, count: u64, cycles: u64) -> Option<u64> {
        let rate = u128::from(count) * u128::from(self.khz?) * 1000 / u128::from(cycles.max(1));
        u64::try_from(rate).ok()
    }
}

/// A time to come.
#[derive(Clone, Copy)]
pub struct Deadline(u64);

impl Deadline {
    /// Has it come?
    pub fn passed(self) -> bool {
        now() >= self.0
    }
}

/// Leaf 0x15: crystal clock in Hz times ratio; else leaf 0x16: base frequency in MHz (SDM vol. 3, 20.7.3).
fn from_cpuid() -> Option<u64> {
    let highest = __cpuid(0).eax;
    if highest >= 0x15 {
        let leaf = __cpuid(0x15);
        let (denominator, numerator, crystal_hz) =
            (u64::from(leaf.eax), u64::from(leaf.ebx), u64::from(leaf.ecx));
        if denominator != 0 && numerator != 0 && crystal_hz != 0 {
            return Some(crystal_hz * numerator / denominator / 1000);
        }
    }
    if highest >= 0x16 {
        let mhz = u64::from(__cpuid(0x16).eax & 0xffff);
        return (mhz != 0).then_some(mhz * 1000);
    }
    None
}
