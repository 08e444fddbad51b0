//! The Linux 64-bit boot protocol: the zero page.
//!
//! Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol", and zero-page.rst. An ELF kernel has no setup header; it
//! gets one with what a boot loader fills in, which is all that the kernel reads after decompression.

use linux_loader::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, boot_e820_entry, boot_params, setup_header,
};
use vm_memory::ByteValued;

use super::cpu_state::{self, Entry, IdentityMap, Mode};
use super::layout::{CMDLINE, ZERO_PAGE};
use super::staging::Staging;
use super::{BootError, Common};

/// Boot loader id "undefined": none is assigned to this monitor.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Protocol 2.12: the one whose fields are filled in for an ELF kernel.
const VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;

/// The header of a kernel that came without one.
pub(super) fn elf_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: VERSION,
        loadflags: LOADED_HIGH,
        ..setup_header::default()
    }
}

/// Writes zero page, page tables and GDT for a kernel that is entered at `entry`.
pub(super) fn place(
    staging: &mut Staging,
    entry: u64,
    header: setup_header,
    common: &Common,
    identity: IdentityMap,
) -> Result<Entry, BootError> {
    let zero_page = zero_page(header, common)?;
    staging.write(ZERO_PAGE, zero_page.as_slice(), "zero page")?;
    cpu_state::place_identity_map(staging, identity)?;
    cpu_state::place_gdt(staging, Mode::Linux64)?;
    Ok(Entry::linux64(entry, ZERO_PAGE))
}

fn zero_page(header: setup_header, common: &Common) -> Result<boot_params, BootError> {
    let mut params = boot_params { hdr: header, ..boot_params::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    // Both lie below 4 GiB, so the `ext_` halves stay zero.
    params.hdr.cmd_line_ptr = CMDLINE.0 as u32;
    if let Some(initrd) = common.initrd {
        params.hdr.ramdisk_image = initrd.start.0 as u32;
        params.hdr.ramdisk_size = initrd.len as u32;
    }
    // Zero stands for none.
    params.acpi_rsdp_addr = common.rsdp.map_or(0, |rsdp| rsdp.0);
    let entries = common.memory_map.entries(E820_MAX_ENTRIES_ZEROPAGE)?;
    params.e820_entries = entries.len() as u8;
    for (slot, entry) in params.e820_table.iter_mut().zip(entries) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            r#type: entry.kind.code(),
        };
    }
    Ok(params)
}
