//! The MP table: how a kernel without ACPI learns of its CPUs, of the I/O APIC and of where ISA interrupts arrive.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4. One page: the floating pointer at the start of the EBDA, the
//! configuration table right after it. What it describes is what KVM's in-kernel interrupt controllers are: interrupt n
//! arrives at I/O APIC pin n.

use super::BootError;
use super::layout::{EBDA, EBDA_SIZE, IO_APIC, LOCAL_APIC};
use super::staging::Staging;

/// How many CPUs a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCount(u8);

impl CpuCount {
    /// The most that the table describes.
    pub const MAX: u8 = 8;

    /// `cpus` of them.
    ///
    /// # Errors
    /// [`BootError::CpuCount`] unless `cpus` is 1 to [`CpuCount::MAX`].
    pub const fn new(cpus: u32) -> Result<Self, BootError> {
        if cpus == 0 || cpus > Self::MAX as u32 {
            return Err(BootError::CpuCount { cpus });
        }
        Ok(Self(cpus as u8))
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// The specification's revision, 1.4.
const REVISION: u8 = 4;
const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const ISA_BUS: u8 = 0;
/// Pins of the I/O APIC. Those of the ISA bus are 16; virtio devices may have the others, and a kernel connects no pin that is
/// not listed.
const PINS: u8 = 24;

// Entry types, table 4-3.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC_ENTRY: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

// Processor entries, tables 4-4 to 4-6.
const LOCAL_APIC_VERSION: u8 = 0x14;
const CPU_ENABLED: u8 = 1 << 0;
const CPU_BOOTSTRAP: u8 = 1 << 1;
/// Family 6; kernels take the real one from CPUID.
const CPU_SIGNATURE: u32 = 0x600;
/// An FPU and a local APIC on the chip.
const CPU_FEATURES: u32 = 1 << 9 | 1;

// I/O APIC entries, table 4-9. The version is the 82093AA's, which KVM models.
const IO_APIC_VERSION: u8 = 0x11;
const IO_APIC_ENABLED: u8 = 1;

// Interrupt types, table 4-11.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Polarity and trigger as the bus has them (ISA: active high, edge).
const CONFORMS: u16 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Writes the table for `cpus` CPUs whose local APIC ids count from 0; the I/O APIC has the next id.
pub(super) fn place(staging: &mut Staging, cpus: CpuCount) -> Result<(), BootError> {
    let table = build(cpus);
    debug_assert!(table.len() as u64 <= EBDA_SIZE);
    staging.write(EBDA, &table, "MP table")
}

fn build(cpus: CpuCount) -> Vec<u8> {
    let table = configuration(cpus);
    let mut bytes = floating_pointer(EBDA.0 + POINTER_LEN as u64);
    bytes.extend(table);
    bytes
}

/// Section 4.1. Feature bytes of zero: a configuration table is present, virtual wire mode, no IMCR.
fn floating_pointer(table: u64) -> Vec<u8> {
    let mut pointer = Vec::with_capacity(POINTER_LEN);
    pointer.extend(b"_MP_");
    pointer.extend((table as u32).to_le_bytes());
    pointer.extend([(POINTER_LEN / 16) as u8, REVISION, 0, 0, 0, 0, 0, 0]);
    seal(&mut pointer, 10);
    pointer
}

/// Section 4.2 and its entries, section 4.3, ordered by type as the specification demands.
fn configuration(cpus: CpuCount) -> Vec<u8> {
    let (entries, count) = entries(cpus);
    let len = (HEADER_LEN + entries.len()) as u16;
    let mut table = Vec::with_capacity(len.into());
    table.extend(b"PCMP");
    table.extend(len.to_le_bytes());
    table.extend([REVISION, 0]);
    table.extend(b"SLAT    ");
    table.extend(b"MICROVM     ");
    // No OEM table: pointer and size are zero.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    // No extended table: length, checksum, reserved.
    table.extend([0; 4]);
    table.extend(entries);
    seal(&mut table, 7);
    table
}

fn entries(cpus: CpuCount) -> (Vec<u8>, u16) {
    let mut bytes = Vec::with_capacity(EBDA_SIZE as usize);
    let mut count = 0;
    let mut push = |entry: &[u8]| {
        bytes.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..cpus.get() {
        let role = if id == 0 { CPU_BOOTSTRAP } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, id, LOCAL_APIC_VERSION, CPU_ENABLED | role]);
        entry[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
        entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
        push(&entry);
    }
    let mut bus = [BUS, ISA_BUS, 0, 0, 0, 0, 0, 0];
    bus[2..].copy_from_slice(b"ISA   ");
    push(&bus);

    let io_apic = cpus.get();
    let mut entry = [IO_APIC_ENTRY, io_apic, IO_APIC_VERSION, IO_APIC_ENABLED, 0, 0, 0, 0];
    entry[4..].copy_from_slice(&IO_APIC.to_le_bytes());
    push(&entry);

    for irq in 0..PINS {
        push(&interrupt(IO_INTERRUPT, INT, irq, io_apic, irq));
    }
    // The PIC's output arrives at the boot CPU's LINT0, NMI at LINT1 of all.
    push(&interrupt(LOCAL_INTERRUPT, EXT_INT, 0, 0, 0));
    push(&interrupt(LOCAL_INTERRUPT, NMI, 0, ALL_LOCAL_APICS, 1));
    (bytes, count)
}

/// Tables 4-10 and 4-12 have one form.
fn interrupt(entry: u8, kind: u8, irq: u8, apic: u8, pin: u8) -> [u8; 8] {
    let [low, high] = CONFORMS.to_le_bytes();
    [entry, kind, low, high, ISA_BUS, irq, apic, pin]
}

/// Makes the bytes add up to zero.
fn seal(bytes: &mut [u8], checksum: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[checksum] = bytes[checksum].wrapping_sub(sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
    }

    /// Walks the table as a kernel does: (type, entry) for each.
    fn walk(bytes: &[u8]) -> Vec<(u8, &[u8])> {
        let count = u16::from_le_bytes([bytes[50], bytes[51]]);
        let mut at = POINTER_LEN + HEADER_LEN;
        let found = (0..count)
            .map(|_| {
                let len = if bytes[at] == PROCESSOR { 20 } else { 8 };
                let entry = &bytes[at..at + len];
                at += len;
                (entry[0], entry)
            })
            .collect();
        assert_eq!(at, bytes.len());
        found
    }

    #[test]
    fn both_checksums_hold_and_it_fits_the_ebda_for_every_number_of_cpus() {
        for cpus in 1..=u32::from(CpuCount::MAX) {
            let bytes = build(CpuCount::new(cpus).unwrap());
            assert!(bytes.len() as u64 <= EBDA_SIZE);
            let (pointer, table) = bytes.split_at(POINTER_LEN);
            assert_eq!((sum(pointer), sum(table)), (0, 0));
            assert_eq!(&pointer[4..8], 0x9_fc10_u32.to_le_bytes());
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        }
    }

    #[test]
    fn there_is_one_boot_cpu_and_the_io_apic_has_an_id_of_its_own() {
        let bytes = build(CpuCount::new(3).unwrap());
        let entries = walk(&bytes);
        let cpus: Vec<_> = entries
            .iter()
            .filter(|(kind, _)| *kind == PROCESSOR)
            .map(|(_, e)| (e[1], e[3]))
            .collect();
        assert_eq!(cpus, [(0, 3), (1, 1), (2, 1)]);
        let io_apic = entries.iter().find(|(kind, _)| *kind == IO_APIC_ENTRY).unwrap().1;
        assert_eq!(io_apic, [2, 3, 0x11, 1, 0, 0, 0xc0, 0xfe]);
    }

    #[test]
    fn each_interrupt_arrives_at_the_pin_of_its_number() {
        let bytes = build(CpuCount::new(1).unwrap());
        let entries = walk(&bytes);
        let pins: Vec<_> = entries
            .iter()
            .filter(|(kind, _)| *kind == IO_INTERRUPT)
            .map(|(_, e)| (e[5], e[6], e[7]))
            .collect();
        let expected: Vec<_> = (0..24).map(|irq| (irq, 1, irq)).collect();
        assert_eq!(pins, expected);
        let mut kinds: Vec<_> = entries.iter().map(|(kind, _)| *kind).collect();
        assert!(kinds.is_sorted());
        kinds.dedup();
        assert_eq!(kinds, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn no_cpus_and_too_many_are_refused() {
        for cpus in [0, 9, u32::MAX] {
            let text = CpuCount::new(cpus).unwrap_err().to_string();
            assert!(text.contains("1 to 8"), "{text}");
        }
    }
}
