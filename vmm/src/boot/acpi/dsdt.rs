//! The DSDT: the serial port, the virtio devices, and how to power off, in AML.
//!
//! ACPI 6.5, section 5.2.11.1 and chapters 6 and 20. Names, packages and buffers, no methods: a kernel's ring 0 interprets
//! AML, and may itself be emulated. Without a `_STA` a device is there and works (section 6.3.7).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package, Path, ResourceTemplate,
    Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use devices::acpi_power::SLEEP_TYPE_S5;
use devices::serial::{COM1_IRQ, COM1_RANGE};

use super::{HEADER_LEN, OEM_ID, OEM_REVISION, OEM_TABLE_ID, VirtioMmio, bytes_of};

/// From 2 on, integers have 64 bits (section 5.2.11.1).
const REVISION: u8 = 2;

/// A 16550A-compatible serial port.
const SERIAL_PORT: &str = "PNP0501";
/// The id under which Linux's driver `virtio_mmio` and others find a device.
const VIRTIO_MMIO: &str = "LNRO0005";

/// The table for a machine with these `virtio` devices.
pub(super) fn build(virtio: &[VirtioMmio]) -> Vec<u8> {
    let mut devices = serial_port();
    for (index, device) in virtio.iter().enumerate() {
        devices.extend(virtio_device(index, *device));
    }
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_LEN, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut body = soft_off();
    body.extend(Scope::raw(Path::new("\\_SB_"), devices));
    dsdt.append_slice(&body);
    dsdt.as_slice().to_vec()
}

/// `\_S5` (section 7.4.2): the sleeping type of soft off; the second element is for a register that there is not, the others
/// are reserved.
fn soft_off() -> Vec<u8> {
    let package = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    bytes_of(&Name::new(Path::new("\\_S5_"), &package))
}

fn serial_port() -> Vec<u8> {
    let base = COM1_RANGE.base() as u16;
    let ports = (COM1_RANGE.last() - COM1_RANGE.base() + 1) as u8;
    device(
        Path::new("COM1"),
        &[
            &Name::new(Path::new("_HID"), &EISAName::new(SERIAL_PORT)),
            &Name::new(Path::new("_UID"), &ZERO),
            &resources(&[&IO::new(base, base, 1, ports), &edge(COM1_IRQ)]),
        ],
    )
}

fn virtio_device(index: usize, at: VirtioMmio) -> Vec<u8> {
    const READ_WRITE: bool = true;
    device(
        Path::new(&format!("V{index:03X}")),
        &[
            &Name::new(Path::new("_HID"), &VIRTIO_MMIO),
            &Name::new(Path::new("_UID"), &index),
            // What it does in memory is coherent with the CPUs' caches (section 6.2.17).
            &Name::new(Path::new("_CCA"), &ONE),
            &resources(&[&Memory32Fixed::new(READ_WRITE, at.base, at.len), &edge(at.gsi)]),
        ],
    )
}

fn device(name: Path, children: &[&dyn Aml]) -> Vec<u8> {
    bytes_of(&Device::new(name, children.to_vec()))
}

/// `_CRS` (section 6.2.2).
fn resources(descriptors: &[&dyn Aml]) -> Name {
    Name::new(Path::new("_CRS"), &ResourceTemplate::new(descriptors.to_vec()))
}

/// An extended interrupt descriptor (section 6.4.3.6): consumed, edge-triggered, active-high, exclusive. Without PICs a kernel
/// takes no ISA interrupt for granted, so that the serial port has one, too.
fn edge(gsi: u32) -> Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge_triggered, active_low, shared, gsi)
}
