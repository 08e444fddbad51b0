//! The power registers of hardware-reduced ACPI: sleep control, sleep status and reset, a port each.
//!
//! ACPI 6.5, sections 4.8.3.6 (reset register) and 4.8.3.7 (sleep control and status registers). The only sleeping state is
//! S5, soft off, so nothing ever wakes, and no register holds anything: all read as zero.

use crate::bus::{BusDevice, PioRange, Request};

/// First of the ports. No device of a PC has them fixed; chipsets put their power management there, too.
const BASE: u64 = 0x600;
/// `SLEEP_CONTROL_REG` of the FADT.
pub const SLEEP_CONTROL_PORT: u64 = BASE;
/// `SLEEP_STATUS_REG` of the FADT.
pub const SLEEP_STATUS_PORT: u64 = BASE + 1;
/// `RESET_REG` of the FADT.
pub const RESET_PORT: u64 = BASE + 2;

/// The three ports.
pub const RANGE: PioRange = PioRange::fixed(BASE, 3);

/// What means S5 in the field `SLP_TYP`: the first element of the package `\_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;
/// What resets when it is written to [`RESET_PORT`]: `RESET_VALUE` of the FADT.
pub const RESET_VALUE: u8 = 1;

/// Bits 4:2 of sleep control: the sleeping state.
const SLP_TYP_SHIFT: u32 = 2;
const SLP_TYP_MASK: u8 = 0b111;
/// Bit 5 of sleep control: enter it.
const SLP_EN: u8 = 1 << 5;

const SLEEP_CONTROL: u64 = SLEEP_CONTROL_PORT - BASE;
const RESET: u64 = RESET_PORT - BASE;

/// The device. It has no state.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcpiPower;

impl BusDevice for AcpiPower {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Not all ones: bit 7 of the status, WAK_STS, would say that the machine slept and woke.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        // The registers are 8 bits wide; a wider write is none of theirs.
        let &[value] = data else { return None };
        let enters = |state| value & SLP_EN != 0 && value >> SLP_TYP_SHIFT & SLP_TYP_MASK == state;
        match offset {
            SLEEP_CONTROL if enters(SLEEP_TYPE_S5) => Some(Request::PowerOff),
            RESET if value == RESET_VALUE => Some(Request::Reset),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::bus::{Claimed, PioBus};

    fn bus() -> PioBus {
        let mut bus = PioBus::new();
        bus.insert(RANGE, "power", Arc::new(Mutex::new(AcpiPower))).unwrap();
        bus
    }

    #[test]
    fn only_s5_with_the_enable_bit_in_sleep_control_powers_off() {
        let bus = bus();
        // ACPICA writes SLP_TYP and SLP_EN at once: 5 << 2 | 1 << 5.
        assert_eq!(bus.write(SLEEP_CONTROL_PORT, &[0x34]), Claimed::Yes(Some(Request::PowerOff)));
        let asks = |value: u8| {
            bus.write(SLEEP_CONTROL_PORT, &[value]) == Claimed::Yes(Some(Request::PowerOff))
        };
        let all: Vec<u8> = (0..=u8::MAX).filter(|&value| asks(value)).collect();
        // Bits 0, 1, 6 and 7 are ignored or reserved.
        assert!(all.iter().all(|value| value & 0x3c == 0x34));
        assert_eq!(all.len(), 16);
        assert_eq!(bus.write(SLEEP_STATUS_PORT, &[0x34]), Claimed::Yes(None));
    }

    #[test]
    fn only_the_reset_value_in_the_reset_register_resets() {
        let bus = bus();
        assert_eq!(bus.write(RESET_PORT, &[RESET_VALUE]), Claimed::Yes(Some(Request::Reset)));
        for (port, value) in [(RESET_PORT, 0), (RESET_PORT, 6), (SLEEP_STATUS_PORT, RESET_VALUE)] {
            assert_eq!(bus.write(port, &[value]), Claimed::Yes(None), "{port:#x} {value}");
        }
    }

    #[test]
    fn wide_writes_do_nothing_and_nothing_has_ever_woken() {
        let bus = bus();
        assert_eq!(bus.write(SLEEP_CONTROL_PORT, &[0x34, 0]), Claimed::Yes(None));
        assert_eq!(bus.write(SLEEP_CONTROL_PORT, &[0x34, 0, 0, 0]), Claimed::No);
        // ACPICA clears WAK_STS before it enters a sleeping state.
        assert_eq!(bus.write(SLEEP_STATUS_PORT, &[0x80]), Claimed::Yes(None));
        for port in [SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, RESET_PORT] {
            let mut data = [0xff];
            assert_eq!(bus.read(port, &mut data), Claimed::Yes(None));
            assert_eq!(data, [0]);
        }
    }
}
