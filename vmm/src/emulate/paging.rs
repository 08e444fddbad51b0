//! From a linear address to a guest-physical one, as the processor does it (SDM vol. 3A, chapter 4).
//!
//! All four kinds of paging, permissions, and the accessed and dirty bits. Not here: protection keys (CR4.PKE), whose check
//! needs PKRU; and reserved bits above the guest's physical width, which no guest sets but to be found out.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::kvm_sregs;
use vm_memory::VolatileMemory;

use super::exception::{Exception, page_fault};
use super::linear::{Access, Trouble};
use super::physical::Physical;

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

/// Bits of an entry, the same at every level and in both sizes.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12 of an entry of 8 bytes.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What of a vCPU decides how its addresses are translated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Regime {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    /// Whether accesses are the user's.
    pub(super) user: bool,
    /// RFLAGS.AC, which lifts SMAP.
    pub(super) ac: bool,
}

/// How many levels there are, and how large their entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    levels: u32,
    /// Bits of the address that an index has.
    index_bits: u32,
    entry_bytes: u64,
}

impl Regime {
    /// That of a vCPU with these registers.
    pub(super) fn of(sregs: &kvm_sregs, rflags: u64) -> Regime {
        Regime {
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            user: sregs.ss.dpl == 3,
            ac: rflags & RFLAGS_AC != 0,
        }
    }

    fn shape(&self) -> Option<Shape> {
        let long = |levels| Shape { levels, index_bits: 9, entry_bytes: 8 };
        match () {
            () if self.cr0 & CR0_PG == 0 => None,
            () if self.efer & EFER_LMA != 0 && self.cr4 & CR4_LA57 != 0 => Some(long(5)),
            () if self.efer & EFER_LMA != 0 => Some(long(4)),
            () if self.cr4 & CR4_PAE != 0 => Some(long(3)),
            () => Some(Shape { levels: 2, index_bits: 10, entry_bytes: 4 }),
        }
    }

    /// Where `linear` lies for an access that stays in its page.
    ///
    /// # Errors
    /// The page fault that the processor would raise, or [`Trouble::Absent`] for tables that are not in RAM.
    pub(super) fn translate(
        &self,
        physical: &Physical<'_>,
        linear: u64,
        access: Access,
    ) -> Result<u64, Trouble> {
        let Some(shape) = self.shape() else { return Ok(linear & 0xffff_ffff) };
        let fault = |present: bool, more: u32| {
            let mut code = more;
            code |= if present { page_fault::PRESENT } else { 0 };
            code |= if access == Access::Write { page_fault::WRITE } else { 0 };
            code |= if self.user { page_fault::USER } else { 0 };
            let told = access == Access::Fetch && (self.no_execute() || self.cr4 & CR4_SMEP != 0);
            code |= if told { page_fault::FETCH } else { 0 };
            Err(Trouble::Raised(Exception::page_fault(linear, code)))
        };
        let pae = shape.levels == 3;
        let mut table = match shape {
            _ if pae => self.cr3 & 0xffff_ffe0,
            Shape { entry_bytes: 4, .. } => self.cr3 & 0xffff_f000,
            _ => self.cr3 & ADDRESS,
        };
        let mut allowed = WRITABLE | USER;
        let mut executable = true;
        let mut above = Vec::with_capacity(4);
        for level in (0..shape.levels).rev() {
            let shift = 12 + level * shape.index_bits;
            let index_bits = if pae && level == 2 { 2 } else { shape.index_bits };
            let index = (linear >> shift) & ((1 << index_bits) - 1);
            let at = table + index * shape.entry_bytes;
            let entry = load(physical, at, shape.entry_bytes)?;
            if entry & PRESENT == 0 {
                return fault(false, 0);
            }
            // The four entries at the top of PAE paging have no permissions and no accessed bit.
            let is_pointer = pae && level == 2;
            if !is_pointer {
                allowed &= entry;
                executable &= entry & NO_EXECUTE == 0 || !self.no_execute();
            }
            let may_be_large = match (shape.entry_bytes, level) {
                (_, 0) => false,
                (4, 1) => self.cr4 & CR4_PSE != 0,
                (_, 1) => true,
                (_, 2) => !pae,
                _ => false,
            };
            if level > 0 && !(may_be_large && entry & LARGE != 0) {
                if entry & LARGE != 0 && level > 2 {
                    return fault(true, page_fault::RESERVED);
                }
                if !is_pointer {
                    above.push((at, entry));
                }
                let mask = if shape.entry_bytes == 4 { 0xffff_f000 } else { ADDRESS };
                table = entry & mask;
                continue;
            }
            if !self.permits(allowed, executable, access) {
                return fault(true, 0);
            }
            for (at, entry) in above {
                set(physical, at, entry, ACCESSED, shape.entry_bytes)?;
            }
            let dirty = if access == Access::Write { DIRTY } else { 0 };
            set(physical, at, entry, ACCESSED | dirty, shape.entry_bytes)?;
            let within = (1u64 << shift) - 1;
            let frame = match shape.entry_bytes {
                // Bits 20:13 of a 4 MiB entry are bits 39:32 of its frame.
                4 if level == 1 => (entry & 0xffc0_0000) | ((entry & 0x1f_e000) << 19),
                4 => entry & 0xffff_f000,
                _ => entry & ADDRESS & !within,
            };
            return Ok(frame | (linear & within));
        }
        unreachable!("the last level has no tables below it")
    }

    fn no_execute(&self) -> bool {
        self.efer & EFER_NXE != 0
    }

    /// Whether a translation with these rights allows the access (SDM vol. 3A, 4.6.1).
    fn permits(&self, allowed: u64, executable: bool, access: Access) -> bool {
        let users_page = allowed & USER != 0;
        if self.user && !users_page {
            return false;
        }
        match access {
            Access::Fetch => executable && (self.user || !users_page || self.cr4 & CR4_SMEP == 0),
            Access::Read | Access::Write => {
                let smap = !self.user && users_page && self.cr4 & CR4_SMAP != 0 && !self.ac;
                let read_only = allowed & WRITABLE == 0 && (self.user || self.cr0 & CR0_WP != 0);
                !smap && (access == Access::Read || !read_only)
            }
        }
    }
}

fn load(physical: &Physical<'_>, at: u64, bytes: u64) -> Result<u64, Trouble> {
    let slice = physical.slice(at, bytes as usize, false)?;
    Ok(match bytes {
        4 => slice.get_ref::<u32>(0).expect("four bytes").load().into(),
        _ => slice.get_ref::<u64>(0).expect("eight bytes").load(),
    })
}

/// Sets `bits` of the entry at `at`, which was `entry`; not with a plain store, because another vCPU may set bits as well.
fn set(physical: &Physical<'_>, at: u64, entry: u64, bits: u64, size: u64) -> Result<(), Trouble> {
    if entry & bits == bits {
        return Ok(());
    }
    let slice = physical.slice(at, size as usize, true)?;
    // An entry is aligned. One that has been changed meanwhile is left as it is.
    if size == 4 {
        let word = slice.get_atomic_ref::<AtomicU32>(0).expect("it is aligned");
        let (old, new) = (entry as u32, (entry | bits) as u32);
        let _ = word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed);
    } else {
        let word = slice.get_atomic_ref::<AtomicU64>(0).expect("it is aligned");
        let _ = word.compare_exchange(entry, entry | bits, Ordering::SeqCst, Ordering::Relaxed);
    }
    Ok(())
}
