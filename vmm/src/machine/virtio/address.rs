//! Where devices are, and how the guest learns of it.

use crate::boot::VirtioMmio;
use crate::config::MachineConfig;

/// The first device's page: in the hole below 4 GiB, where no RAM is.
const FIRST: u64 = 0xd000_0000;
/// The distance from one device to the next.
const STEP: u64 = devices::virtio::mmio::SIZE;

/// Interrupts that no legacy device of this machine has, in the order in which they are given out. There are as many as a
/// config may have devices.
const INTERRUPTS: [u32; 16] = [5, 10, 11, 9, 6, 7, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22];

/// The devices as ACPI tables tell a kernel of them.
pub(in crate::machine) fn in_acpi_tables(config: &MachineConfig) -> Vec<VirtioMmio> {
    let describe = |index| VirtioMmio {
        // All of them lie in the hole below 4 GiB.
        base: address(index) as u32,
        len: STEP as u32,
        gsi: interrupt(index),
    };
    (0..config.devices.len() as u64).map(describe).collect()
}

/// Where device `index` has its page.
pub(super) fn address(index: u64) -> u64 {
    FIRST + index * STEP
}

/// The interrupt of device `index`.
pub(super) fn interrupt(index: u64) -> u32 {
    // A config has at most 16 devices.
    INTERRUPTS[index as usize % INTERRUPTS.len()]
}

/// The devices as Linux's command line names them (`virtio_mmio.device=size@address:interrupt`), with a space behind each.
/// In front of what the user wrote: behind a `--` it would be the init program's.
pub(in crate::machine) fn on_command_line(config: &MachineConfig) -> String {
    let devices = 0..config.devices.len() as u64;
    let each = |index| format!("virtio_mmio.device=4K@{:#x}:{} ", address(index), interrupt(index));
    devices.map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_an_interrupt_of_its_own_and_none_has_a_legacy_devices() {
        let mut lines: Vec<u32> = (0..16).map(interrupt).collect();
        // Timer, keyboard, cascade, COM2, COM1, clock, FPU.
        assert!(lines.iter().all(|line| ![0, 1, 2, 3, 4, 8, 13].contains(line) && *line < 24));
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 16);
    }

    #[test]
    fn pages_lie_in_the_hole() {
        let (first, last) = (address(0), address(15) + STEP);
        assert!(first >= crate::config::HOLE_START && last <= 0xfec0_0000, "below the I/O APIC");
    }
}
