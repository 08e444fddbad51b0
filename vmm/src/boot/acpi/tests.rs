//! The tables over their bytes, as a kernel finds them. Offsets are those of ACPI 6.5, section 5.2.

use devices::acpi_power;

use super::*;

const COM1: &[u8] = b"COM1";

fn cpus(count: u32) -> CpuCount {
    CpuCount::new(count).unwrap()
}

/// As many devices as a config may have, with as large numbers as they get.
fn devices(count: u32) -> Vec<VirtioMmio> {
    let device =
        |index| VirtioMmio { base: 0xd000_0000 + index * 0x1000, len: 0x1000, gsi: 5 + index };
    (0..count).map(device).collect()
}

fn tables(nr_cpus: u32, nr_devices: u32) -> Vec<u8> {
    build(AcpiMachine { cpus: cpus(nr_cpus), virtio: &devices(nr_devices) })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The table at a guest-physical address, whose checksum is right.
fn table<'a>(bytes: &'a [u8], at: u64, signature: &[u8; 4]) -> &'a [u8] {
    let table = &bytes[(at - ACPI.0) as usize..];
    let table = &table[..u32_at(table, 4) as usize];
    assert_eq!(&table[..4], signature);
    assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(signature));
    assert_eq!(at % ALIGNMENT as u64, 0);
    table
}

/// The tables that the RSDP leads to: FADT, MADT, DSDT.
fn walk(bytes: &[u8]) -> [&[u8]; 3] {
    assert_eq!(&bytes[..8], b"RSD PTR ");
    // Revision 2: the first 20 bytes have a checksum of their own, there is no RSDT, and the XSDT counts.
    assert_eq!((sum(&bytes[..20]), bytes[15], u32_at(bytes, 16)), (0, 2, 0));
    assert_eq!((sum(&bytes[..36]), u32_at(bytes, 20)), (0, 36));
    let xsdt = table(bytes, u64_at(bytes, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(bytes, u64_at(xsdt, 36), b"FACP");
    let madt = table(bytes, u64_at(xsdt, 44), b"APIC");
    // X_DSDT; the 32-bit field is not used.
    assert_eq!(u32_at(fadt, 40), 0);
    [fadt, madt, table(bytes, u64_at(fadt, 140), b"DSDT")]
}

/// The interrupt controllers of a MADT: (type, structure) for each.
fn controllers(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut found = Vec::new();
    while let [kind, len, ..] = *rest {
        let (structure, behind) = rest.split_at(len.into());
        found.push((kind, structure));
        rest = behind;
    }
    found
}

fn find(bytes: &[u8], what: &[u8]) -> Vec<usize> {
    (0..bytes.len()).filter(|&at| bytes[at..].starts_with(what)).collect()
}

#[test]
fn every_table_is_found_from_the_rsdp_with_a_right_checksum_within_a_page() {
    for (nr_cpus, nr_devices) in [(1, 0), (1, 1), (2, 3), (8, 16)] {
        let bytes = tables(nr_cpus, nr_devices);
        assert!(bytes.len() as u64 <= PAGE_SIZE, "{}", bytes.len());
        walk(&bytes);
    }
    assert_eq!(ACPI.0 % ALIGNMENT as u64, 0);
}

#[test]
fn the_fadt_says_reduced_hardware_and_where_the_power_registers_are() {
    let bytes = tables(1, 0);
    let [fadt, ..] = walk(&bytes);
    // Revision 6.5.
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    let flags = u32_at(fadt, 112);
    for (bit, set) in [(0, true), (4, true), (5, true), (6, true), (10, true), (20, true)] {
        assert_eq!(flags >> bit & 1 == 1, set, "bit {bit} of {flags:#x}");
    }
    // No legacy devices, no 8042, no VGA, no CMOS clock.
    assert_eq!(u16_at(fadt, 109), 0b10_0100);
    let register = |at: usize| {
        // System I/O, 8 bits from bit 0 on, a byte at a time.
        assert_eq!(fadt[at..at + 4], [1, 8, 0, 1]);
        u64_at(fadt, at + 4)
    };
    assert_eq!((register(116), fadt[128]), (acpi_power::RESET_PORT, acpi_power::RESET_VALUE));
    assert_eq!(register(244), acpi_power::SLEEP_CONTROL_PORT);
    assert_eq!(register(256), acpi_power::SLEEP_STATUS_PORT);
    // SCI, SMI, and the blocks of the fixed hardware: none.
    assert!(fadt[46..109].iter().all(|&byte| byte == 0));
    assert!(fadt[148..244].iter().all(|&byte| byte == 0));
}

#[test]
fn the_madt_lists_each_cpu_and_the_io_apic() {
    for count in 1..=u32::from(CpuCount::MAX) {
        let bytes = tables(count, 0);
        let [_, madt, _] = walk(&bytes);
        assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 0));
        let controllers = controllers(madt);
        let (io_apic, local_apics) = controllers.split_last().unwrap();
        let expected: Vec<_> = (0..count as u8).map(|id| vec![0, 8, id, id, 1, 0, 0, 0]).collect();
        let found: Vec<_> = local_apics.iter().map(|(_, apic)| apic.to_vec()).collect();
        assert_eq!(found, expected);
        assert_eq!(io_apic.1, [1, 12, count as u8, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    }
}

#[test]
fn the_dsdt_has_soft_off_and_the_serial_port_with_its_interrupt() {
    let bytes = tables(1, 0);
    let [.., dsdt] = walk(&bytes);
    assert_eq!(dsdt[8], 2);
    // Name (\_S5, Package () {5, 0, 0, 0}), where the device looks for the 5.
    let s5 = [&b"\x08\\_S5_\x12\x07\x04\x0a"[..], &[acpi_power::SLEEP_TYPE_S5, 0, 0, 0]].concat();
    assert_eq!(find(dsdt, &s5), [36]);
    let at = find(dsdt, COM1)[0];
    // EISA id PNP0501.
    assert_eq!(find(dsdt, b"\x08_HID\x0c\x41\xd0\x05\x01").len(), 1);
    // Ports 0x3f8..=0x3ff, decoded with 16 bits.
    assert!(find(dsdt, &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8])[0] > at);
    assert!(find(dsdt, &interrupt(4))[0] > at);
}

/// An extended interrupt descriptor: consumer, edge, active-high, exclusive; then an end tag with a right checksum, or none.
fn interrupt(gsi: u8) -> Vec<u8> {
    vec![0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0, 0x79]
}

#[test]
fn each_virtio_device_has_a_name_its_page_and_its_interrupt() {
    let bytes = tables(1, 16);
    let [.., dsdt] = walk(&bytes);
    assert_eq!(find(dsdt, b"\x08_HID\x0dLNRO0005\0").len(), 16);
    assert_eq!(find(dsdt, b"\x08_CCA\x01").len(), 16);
    for (index, device) in devices(16).iter().enumerate() {
        let start = find(dsdt, format!("V{index:03X}").as_bytes());
        let [start] = start[..] else { panic!("{start:?}") };
        let end = find(dsdt, format!("V{:03X}", index + 1).as_bytes());
        let body = &dsdt[start..end.first().copied().unwrap_or(dsdt.len())];
        // Memory32Fixed, read and write.
        let mut memory = vec![0x86, 9, 0, 1];
        memory.extend(device.base.to_le_bytes());
        memory.extend(device.len.to_le_bytes());
        assert_eq!(find(body, &memory).len(), 1, "{index}");
        assert_eq!(find(body, &interrupt(device.gsi as u8)).len(), 1, "{index}");
    }
}

#[test]
fn the_dsdt_has_no_methods() {
    let bytes = tables(8, 16);
    let [.., dsdt] = walk(&bytes);
    assert!(dsdt.len() < 1400, "{}", dsdt.len());
    assert!(find(dsdt, b"_STA").is_empty());
    // A scope of devices, and in each nothing but names: every object starts with NameOp.
    let mut rest = &dsdt[36 + 14..];
    let mut objects = 0;
    let (scope, len) = package(&mut rest, &[0x10]);
    assert_eq!((&scope[..5], scope.len()), (&b"\\_SB_"[..], len));
    let mut devices = &scope[5..];
    while !devices.is_empty() {
        let (device, _) = package(&mut devices, &[0x5b, 0x82]);
        objects += 1;
        assert!(matches!(device[4], 0x08), "{device:x?}");
    }
    assert_eq!((objects, rest.len()), (17, 0));
}

/// Takes an object with a PkgLength (ACPI 6.5, section 20.2.4) off the front of `bytes`: what follows the length.
fn package<'a>(bytes: &mut &'a [u8], opcode: &[u8]) -> (&'a [u8], usize) {
    assert!(bytes.starts_with(opcode), "{bytes:x?}");
    let at = opcode.len();
    let lead = usize::from(bytes[at]);
    let (encoded, len) = match lead >> 6 {
        0 => (1, lead),
        1 => (2, lead & 0xf | usize::from(bytes[at + 1]) << 4),
        more => panic!("{more} more bytes of length"),
    };
    let (object, rest) = bytes.split_at(at + len);
    *bytes = rest;
    (&object[at + encoded..], len - encoded)
}
