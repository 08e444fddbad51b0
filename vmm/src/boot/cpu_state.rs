//! How the boot CPU starts: registers, descriptor tables, page tables.
//!
//! * 64-bit protocol: Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol". Long mode with an identity map, flat
//!   segments with selectors 0x10 and 0x18, interrupts off, RSI holds the zero page.
//! * PVH: Xen docs/misc/pvh.pandoc, "x86/HVM direct boot ABI". 32-bit protected mode, flat, no paging, EBX holds the start
//!   info, CR0 has PE only, CR4 is zero, TR is a 32-bit TSS with base 0 and limit 0x67.
//!
//! The descriptors are also written to memory, so that a guest that reloads a segment before it has its own GDT gets what it
//! had. Other CPUs start by INIT and SIPI and need nothing from here.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::GuestAddress;

use super::BootError;
use super::layout::{GDT, PAGE_SIZE, PML4, STACK_TOP};
use super::staging::Staging;

/// In which mode the boot CPU enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Long mode, Linux 64-bit protocol.
    Linux64,
    /// 32-bit protected mode without paging, PVH.
    Pvh,
}

/// The start state of the boot CPU. Everything it points to is in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The mode; it decides about segments and control registers.
    pub mode: Mode,
    /// First instruction.
    pub rip: GuestAddress,
    /// Initial stack pointer; there is a page below it.
    pub rsp: GuestAddress,
    /// RSI: the zero page (Linux64), else 0.
    pub rsi: GuestAddress,
    /// RBX: `hvm_start_info` (PVH), else 0.
    pub rbx: GuestAddress,
}

/// How the identity map of the first 4 GiB is built. Only the 64-bit protocol has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityMap {
    /// Size of its pages.
    pub pages: IdentityPages,
    /// Who may use it.
    pub access: IdentityAccess,
}

/// Page size of the identity map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdentityPages {
    /// 2 MiB: six pages of tables. Every CPU has it.
    #[default]
    TwoMib,
    /// 1 GiB: two pages of tables. Only when the guest's CPUID has `pdpe1gb` (leaf 0x8000_0001, EDX bit 26).
    OneGib,
}

/// Privilege the identity map asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdentityAccess {
    /// CPL 0 to 2 only.
    #[default]
    Supervisor,
    /// CPL 3 too: for a built-in guest that works in ring 3 and has no tables of its own. Such a guest must not turn on
    /// SMEP or SMAP.
    User,
}

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;
/// Null, null, code, data, and the TSS, which is two entries in long mode.
const GDT_ENTRIES: usize = 6;

// Segment types, SDM volume 3, 3.4.5.1 and 3.5.
const CODE_READ_ACCESSED: u8 = 0xb;
const DATA_WRITE_ACCESSED: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;
const TSS_LIMIT: u32 = 0x67;

const CR0_PE: u64 = 1 << 0;
/// Extension type: hardwired to one since the 486.
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set; IF, TF and VM are clear, as both protocols ask.
const RFLAGS: u64 = 1 << 1;

// Page table entries, SDM volume 3, 4.5.4.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ENTRIES: u64 = 512;
const GIB: u64 = 1 << 30;
const TWO_MIB: u64 = 2 << 20;
const IDENTITY_GIB: u64 = 4;

impl Entry {
    pub(super) const fn linux64(rip: u64, zero_page: GuestAddress) -> Self {
        Self {
            mode: Mode::Linux64,
            rip: GuestAddress(rip),
            rsp: STACK_TOP,
            rsi: zero_page,
            rbx: GuestAddress(0),
        }
    }

    pub(super) const fn pvh(eip: u32, start_info: GuestAddress) -> Self {
        Self {
            mode: Mode::Pvh,
            rip: GuestAddress(eip as u64),
            rsp: STACK_TOP,
            rsi: GuestAddress(0),
            rbx: start_info,
        }
    }

    /// The general registers; those that no protocol names are zero.
    pub fn regs(&self) -> kvm_regs {
        kvm_regs {
            rip: self.rip.0,
            rsp: self.rsp.0,
            rsi: self.rsi.0,
            rbx: self.rbx.0,
            rflags: RFLAGS,
            ..kvm_regs::default()
        }
    }

    /// Fills in segments, descriptor tables, control registers and EFER. Start from what `KVM_GET_SREGS` gave: the APIC
    /// base stays as it is.
    pub fn fill_sregs(&self, sregs: &mut kvm_sregs) {
        let data = data_segment();
        sregs.cs = code_segment(self.mode);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = tss_segment();
        sregs.ldt = kvm_segment { unusable: 1, ..kvm_segment::default() };
        sregs.gdt = kvm_dtable {
            base: GDT.0,
            limit: (GDT_ENTRIES * 8 - 1) as u16,
            ..kvm_dtable::default()
        };
        // No IDT: an exception before the guest has its own is a triple fault, which the monitor sees as a shutdown.
        sregs.idt = kvm_dtable::default();
        sregs.cr2 = 0;
        match self.mode {
            Mode::Linux64 => {
                sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
                sregs.cr3 = PML4.0;
                sregs.cr4 = CR4_PAE;
                sregs.efer = EFER_LME | EFER_LMA;
            }
            Mode::Pvh => {
                sregs.cr0 = CR0_PE | CR0_ET;
                sregs.cr3 = 0;
                sregs.cr4 = 0;
                sregs.efer = 0;
            }
        }
    }
}

/// Writes the GDT that [`Entry::fill_sregs`] refers to.
pub(super) fn place_gdt(staging: &mut Staging, mode: Mode) -> Result<(), BootError> {
    let mut gdt = [0_u64; GDT_ENTRIES];
    for segment in [code_segment(mode), data_segment(), tss_segment()] {
        gdt[usize::from(segment.selector) / 8] = descriptor(&segment);
    }
    staging.write(GDT, gdt.map(u64::to_le_bytes).as_flattened(), "GDT")
}

/// Writes the identity map of the first 4 GiB: all low RAM and the MMIO hole.
pub(super) fn place_identity_map(staging: &mut Staging, map: IdentityMap) -> Result<(), BootError> {
    let user = match map.access {
        IdentityAccess::Supervisor => 0,
        IdentityAccess::User => USER,
    };
    let table = PRESENT | WRITABLE | ACCESSED | user;
    let leaf = table | DIRTY | LARGE;
    let pdpt = PML4.0 + PAGE_SIZE;
    let first_pd = pdpt + PAGE_SIZE;

    let mut write = |at: u64, entries: &mut dyn Iterator<Item = u64>| {
        let bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        staging.write(GuestAddress(at), &bytes, "page table")
    };
    write(PML4.0, &mut std::iter::once(pdpt | table))?;
    match map.pages {
        IdentityPages::OneGib => write(pdpt, &mut (0..IDENTITY_GIB).map(|gib| (gib * GIB) | leaf)),
        IdentityPages::TwoMib => {
            write(pdpt, &mut (0..IDENTITY_GIB).map(|gib| (first_pd + gib * PAGE_SIZE) | table))?;
            write(first_pd, &mut (0..IDENTITY_GIB * ENTRIES).map(|block| (block * TWO_MIB) | leaf))
        }
    }
}

fn code_segment(mode: Mode) -> kvm_segment {
    // L and D exclude each other, SDM volume 3, 3.4.5.
    let long = u8::from(mode == Mode::Linux64);
    kvm_segment {
        selector: CODE_SELECTOR,
        type_: CODE_READ_ACCESSED,
        l: long,
        db: 1 - long,
        ..flat_segment()
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment { selector: DATA_SELECTOR, type_: DATA_WRITE_ACCESSED, db: 1, ..flat_segment() }
}

fn flat_segment() -> kvm_segment {
    kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..kvm_segment::default() }
}

/// At base 0, as PVH asks: never used, since nothing switches tasks or stacks with it.
fn tss_segment() -> kvm_segment {
    kvm_segment {
        selector: TSS_SELECTOR,
        limit: TSS_LIMIT,
        type_: TSS_BUSY,
        present: 1,
        ..kvm_segment::default()
    }
}

/// The 8-byte descriptor of `segment`, SDM volume 3, figure 3-8. Bases here are zero, so the upper half that a TSS has in
/// long mode is zero too.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 { segment.limit >> 12 } else { segment.limit };
    let (limit, base) = (u64::from(limit), segment.base);
    let access = segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7;
    let flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xf) << 48
        | u64::from(flags) << 52
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests;
