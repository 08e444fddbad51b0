//! The FADT: that the hardware is reduced, what of a PC is not there, and where the power registers are.
//!
//! ACPI 6.5, section 5.2.9.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use devices::acpi_power::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};

// `IAPC_BOOT_ARCH` (section 5.2.9.3). Bit 0, LEGACY_DEVICES, and bit 1, 8042, are off: a kernel then takes the DSDT's word
// for what is there, and probes for no keyboard. The reset line of the 8042 works all the same.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// The clock at the ports of a CMOS tells the time, but raises no interrupt; a driver for it would wait for one.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// The table, which says that the DSDT is at `dsdt`. `WBINVD` must be set on every PC. The buttons and the clock's alarm are
/// not among the fixed registers, which is what their flags say when they are set.
pub(super) fn build(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    bytes_of(&fadt.finalize())
}

/// A register of one byte at `port`.
fn port(port: u64) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}
