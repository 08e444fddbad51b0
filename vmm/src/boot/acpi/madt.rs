//! The MADT: a local APIC for each CPU, and the I/O APIC.
//!
//! ACPI 6.5, section 5.2.12. KVM connects interrupt n to pin n of its I/O APIC, ISA's too, so that no interrupt source
//! override (5.2.12.5) is needed. The PICs that KVM brings along are not told of (`PCAT_COMPAT` is off): hardware-reduced
//! ACPI has none.

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::{HEADER_LEN, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::boot::CpuCount;
use crate::boot::layout::{IO_APIC, LOCAL_APIC};

/// The table's revision in ACPI 6.5 (table 5.19). The crate's own table has 1, that of ACPI 1.0.
const REVISION: u8 = 6;
/// Multiple APIC flags: bit 0, `PCAT_COMPAT`, is off.
const FLAGS: u32 = 0;
/// The first interrupt of the I/O APIC.
const GSI_BASE: u32 = 0;

/// The table for `cpus` CPUs whose local APIC ids count from 0; the I/O APIC has the next id.
pub(super) fn build(cpus: CpuCount) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(LOCAL_APIC.to_le_bytes());
    body.extend(FLAGS.to_le_bytes());
    for id in 0..cpus.get() {
        body.extend(bytes_of(&ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    }
    body.extend(bytes_of(&IoApic::new(cpus.get(), IO_APIC, GSI_BASE)));
    let mut madt = Sdt::new(*b"APIC", HEADER_LEN, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&body);
    madt.as_slice().to_vec()
}
