//! Where things lie in guest-physical memory at boot.
//!
//! ```text
//! 0x0000_0500  GDT                                    0x0002_0000  command line
//! 0x0000_6000  PVH start info (PVH only)              0x0009_fc00  EBDA: MP table (without ACPI)
//! 0x0000_7000  zero page (64-bit protocol only)       0x000a_0000  no RAM on a PC; here reserved RAM
//! 0x0000_8ff0  stack, growing down to 0x8000          0x0010_0000  kernel, from here up; initrd at the top
//! 0x0000_9000  page tables, up to 6 pages             0xc000_0000  MMIO hole, up to 4 GiB; then the rest of RAM
//!                                                     0x000e_0000  ACPI tables, in that RAM
//! ```
//!
//! The kernel, before it has its own tables, reads only what lies below 4 GiB, so everything does.

use vm_memory::GuestAddress;

use super::BootError;

/// Bytes in a page, the granularity of extents.
pub const PAGE_SIZE: u64 = 4096;

/// The GDT of the boot CPU. Below it lies the real-mode vector table and the BIOS data area.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// PVH `hvm_start_info`, its module list and its memory map, in one page.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// `boot_params` of the Linux boot protocol ("zero page").
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Initial stack pointer: one page of stack, 16-byte aligned. The protocols ask for none; a built-in guest is glad of it.
pub const STACK_TOP: GuestAddress = GuestAddress(0x8ff0);
/// Page map level 4; the tables below it follow page by page.
pub const PML4: GuestAddress = GuestAddress(0x9000);
/// The kernel command line, zero-terminated.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Most bytes of command line, the terminating zero included.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// Extended BIOS data area: the last KiB of conventional memory, where a kernel looks for the MP table unasked
/// (Intel MP specification 1.4, section 4).
pub const EBDA: GuestAddress = GuestAddress(0x9_fc00);
/// Size of the EBDA in bytes.
pub const EBDA_SIZE: u64 = 0x400;
/// The RSDP and behind it the other ACPI tables, in one page: where the read-only memory of a BIOS starts, which a kernel
/// searches for an RSDP unasked (ACPI 6.5, section 5.2.5.1).
pub const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// First address for kernels. From the EBDA up to here the memory map says "reserved".
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// First address of the hole in RAM that holds virtio-mmio devices, the I/O APIC and the local APICs.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// First address after the hole.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;
/// Registers of KVM's I/O APIC (82093AA data sheet, section 3.0).
pub const IO_APIC: u32 = 0xfec0_0000;
/// Registers of each CPU's local APIC (SDM vol. 3A, section 11.4.1).
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// Least RAM of a guest, in bytes: low memory and one MiB for a kernel.
pub const RAM_MIN: u64 = 2 << 20;
/// Most RAM of a guest, in bytes: 46 physical address bits, less the hole.
pub const RAM_MAX: u64 = (1 << 46) - (MMIO_HOLE_END - MMIO_HOLE_START);

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestExtent {
    /// First address.
    pub start: GuestAddress,
    /// Bytes, more than 0.
    pub len: u64,
}

impl GuestExtent {
    /// First address after it.
    pub const fn end(self) -> u64 {
        self.start.0 + self.len
    }
}

/// How much RAM a guest has, and so where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLayout {
    bytes: u64,
}

impl RamLayout {
    /// A layout for `bytes` of RAM.
    ///
    /// # Errors
    /// [`BootError::RamSize`] unless `bytes` is whole pages from [`RAM_MIN`] to [`RAM_MAX`].
    pub const fn new(bytes: u64) -> Result<Self, BootError> {
        if bytes < RAM_MIN || bytes > RAM_MAX || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(BootError::RamSize { bytes });
        }
        Ok(Self { bytes })
    }

    /// Size of RAM in bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// RAM from address 0 up to the MMIO hole at most.
    pub const fn low(self) -> GuestExtent {
        let len = if self.bytes < MMIO_HOLE_START { self.bytes } else { MMIO_HOLE_START };
        GuestExtent { start: GuestAddress(0), len }
    }

    /// RAM from 4 GiB on, if low RAM does not hold it all.
    pub const fn high(self) -> Option<GuestExtent> {
        match self.bytes - self.low().len {
            0 => None,
            len => Some(GuestExtent { start: GuestAddress(MMIO_HOLE_END), len }),
        }
    }

    /// The regions of RAM in address order.
    pub fn regions(self) -> impl Iterator<Item = GuestExtent> {
        std::iter::once(self.low()).chain(self.high())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_at_the_mmio_hole_and_none_of_it_is_lost() {
        for bytes in [RAM_MIN, MMIO_HOLE_START - PAGE_SIZE, MMIO_HOLE_START] {
            let ram = RamLayout::new(bytes).unwrap();
            assert_eq!((ram.low().len, ram.high()), (bytes, None));
        }
        let ram = RamLayout::new(MMIO_HOLE_START + PAGE_SIZE).unwrap();
        let high = ram.high().unwrap();
        assert_eq!((high.start.0, high.len), (MMIO_HOLE_END, PAGE_SIZE));
        let largest = RamLayout::new(RAM_MAX).unwrap();
        assert_eq!(largest.regions().map(|region| region.len).sum::<u64>(), RAM_MAX);
        assert_eq!(largest.high().unwrap().end(), 1 << 46);
    }

    #[test]
    fn sizes_that_no_layout_exists_for_are_refused_with_what_is_allowed() {
        for bytes in [0, RAM_MIN - PAGE_SIZE, RAM_MIN + 1, RAM_MAX + PAGE_SIZE, u64::MAX] {
            let text = RamLayout::new(bytes).unwrap_err().to_string();
            assert!(
                text.contains(&bytes.to_string()) && text.contains("multiple of 4096"),
                "{text}"
            );
        }
    }
}
