//! ACPI tables: how a kernel learns of its CPUs, of the I/O APIC, of the devices that no bus finds, and of the power registers.
//!
//! ACPI 6.5, chapter 5, in its hardware-reduced form (section 4.1): there is no PM timer, no SCI and no fixed button behind
//! the tables, only the three ports of [`devices::acpi_power`]. One page of the BIOS area:
//!
//! ```text
//!   RSDP -> XSDT -> FADT -> DSDT   fadt.rs  power registers      dsdt.rs  devices, in AML
//!               '-> MADT           madt.rs  CPUs and I/O APIC
//! ```
//!
//! The area is searched by kernels that look for an RSDP by themselves (section 5.2.5.1), and is reserved in the memory map.
//! Both boot protocols hand the RSDP's address over as well.

mod dsdt;
mod fadt;
mod madt;

#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::GuestAddress;

use super::layout::{ACPI, PAGE_SIZE};
use super::staging::Staging;
use super::{BootError, CpuCount};

const OEM_ID: [u8; 6] = *b"SLAT  ";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;
/// Bytes in the header that every table but the RSDP starts with (section 5.2.6).
const HEADER_LEN: u32 = 36;
/// An RSDP lies on a multiple of this (section 5.2.5.1); the tables do here, too.
const ALIGNMENT: usize = 16;

/// What the tables tell beside what every machine has: the I/O APIC, the serial port and the power registers.
#[derive(Clone, Copy, Debug)]
pub struct AcpiMachine<'a> {
    /// CPUs, whose local APIC ids count from 0.
    pub cpus: CpuCount,
    /// The virtio devices, in their order on the bus.
    pub virtio: &'a [VirtioMmio],
}

/// Where a virtio device is on the MMIO bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Guest-physical address of its registers.
    pub base: u32,
    /// Bytes of registers.
    pub len: u32,
    /// Its interrupt, a pin of the I/O APIC.
    pub gsi: u32,
}

/// Writes the tables. Returns where the RSDP is.
pub(super) fn place(
    staging: &mut Staging,
    machine: AcpiMachine<'_>,
) -> Result<GuestAddress, BootError> {
    let tables = build(machine);
    debug_assert!(tables.len() as u64 <= PAGE_SIZE);
    staging.write(ACPI, &tables, "ACPI tables")?;
    Ok(ACPI)
}

/// The tables as they lie at [`ACPI`], the RSDP first.
fn build(machine: AcpiMachine<'_>) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len()];
    let mut append = |table: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        let at = ACPI.0 + bytes.len() as u64;
        bytes.extend(table);
        at
    };
    let dsdt = append(dsdt::build(machine.virtio));
    let fadt = append(fadt::build(dsdt));
    let madt = append(madt::build(machine.cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    bytes
}

fn bytes_of(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}
