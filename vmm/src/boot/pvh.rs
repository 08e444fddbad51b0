//! The PVH protocol: the start info.
//!
//! Xen docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h, version 1 (with a memory map).

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestAddress};

use super::cpu_state::{self, Entry, Mode};
use super::layout::{CMDLINE, PAGE_SIZE, PVH_START_INFO};
use super::staging::Staging;
use super::{BootError, Common};

/// The first version with a memory map.
const VERSION: u32 = 1;

const MODULES: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x40);
const MEMORY_MAP: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x80);
/// As many as the rest of the page holds.
const MEMORY_MAP_MAX: usize = (PAGE_SIZE as usize - 0x80) / size_of::<hvm_memmap_table_entry>();

/// Writes start info, memory map, module list and GDT for a kernel that is entered at `entry`.
pub(super) fn place(
    staging: &mut Staging,
    entry: u32,
    common: &Common,
) -> Result<Entry, BootError> {
    let entries = common.memory_map.entries(MEMORY_MAP_MAX)?;
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: CMDLINE.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: entries.len() as u32,
        // Zero stands for none.
        rsdp_paddr: common.rsdp.map_or(0, |rsdp| rsdp.0),
        ..hvm_start_info::default()
    };
    if let Some(initrd) = common.initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start.0,
            size: initrd.len,
            ..hvm_modlist_entry::default()
        };
        staging.write(MODULES, module.as_slice(), "module list")?;
        info.nr_modules = 1;
        info.modlist_paddr = MODULES.0;
    }
    for (index, entry) in (0..).zip(entries) {
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            type_: entry.kind.code(),
            reserved: 0,
        };
        let at = MEMORY_MAP.0 + index * size_of::<hvm_memmap_table_entry>() as u64;
        staging.write(GuestAddress(at), entry.as_slice(), "memory map")?;
    }
    staging.write(PVH_START_INFO, info.as_slice(), "start info")?;
    cpu_state::place_gdt(staging, Mode::Pvh)?;
    Ok(Entry::pvh(entry, PVH_START_INFO))
}
