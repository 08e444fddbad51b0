//! From a linear address to a guest-physical one, as the processor does it (SDM vol. 3A, chapter 4).
//!
//! All four kinds of paging, permissions, and the accessed and dirty bits. Not here: protection keys (CR4.PKE), whose check
//! needs PKRU; and reserved bits above the guest's physical width, which no guest sets but to be found out.

#![allow(unsafe_code, reason = "entries that a walk came through are read again where they are")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::kvm_sregs;
use vm_memory::VolatileMemory;

use super::cpu::{control, flag};
use super::exception::{Exception, page_fault};
use super::linear::{Access, PAGE, Trouble};
use super::physical::Physical;

/// Bits of an entry, the same at every level and in both sizes.
pub(super) mod entry {
    pub(in crate::emulate) const PRESENT: u64 = 1 << 0;
    pub(in crate::emulate) const WRITABLE: u64 = 1 << 1;
    pub(in crate::emulate) const USER: u64 = 1 << 2;
    pub(in crate::emulate) const ACCESSED: u64 = 1 << 5;
    pub(in crate::emulate) const DIRTY: u64 = 1 << 6;
    pub(in crate::emulate) const LARGE: u64 = 1 << 7;
    pub(in crate::emulate) const NO_EXECUTE: u64 = 1 << 63;
    /// Bits 51:12 of an entry of 8 bytes.
    pub(in crate::emulate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

use entry::{ACCESSED, ADDRESS, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};

/// Levels of tables, at most.
const LEVELS: usize = 5;

/// What of a vCPU decides how its addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Where a walk led, and through what.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    pub(super) gpa: u64,
    pub(super) way: Way,
    pub(super) rights: Rights,
}

/// What a page allows: a bit for each [`Access`], with RFLAGS.AC clear and with it set. A page that has not been written does
/// not allow it, because a write sets a bit of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rights(u8);

impl Rights {
    pub(super) const NONE: Rights = Rights(0);
    const ALL: Rights = Rights(!0);

    #[inline]
    pub(super) fn allow(self, access: Access, ac: bool) -> bool {
        self.0 & Rights::bit(access, ac) != 0
    }

    #[inline]
    fn bit(access: Access, ac: bool) -> u8 {
        1 << (access as u8 + if ac { 4 } else { 0 })
    }
}

/// The entries that a walk came through, from the root down: where each is in this process, and what it was when the walk had
/// passed, with the bits that it sets. While they are the same, a walk leads to the same place.
#[derive(Clone, Copy)]
pub(super) struct Way {
    passed: [(u64, u64); LEVELS],
    levels: usize,
}

impl Way {
    /// None: nothing is known of it.
    pub(super) const NONE: Way = Way { passed: [(0, 0); LEVELS], levels: 0 };

    fn push(&mut self, host: u64, entry: u64) {
        self.passed[self.levels] = (host, entry);
        self.levels += 1;
    }

    /// Whether a walk with the same address goes the same way from the root that is at `root` in this process, which may be
    /// another than before: the upper entries of a kernel are the same in all of its tables.
    ///
    /// # Safety
    /// The guest's RAM in this process is where it was when the way was gone, and `root` is the root's page in it.
    #[inline]
    pub(super) unsafe fn holds(&self, root: u64) -> bool {
        let mut passed = self.passed[..self.levels].iter();
        let Some(&(first, entry)) = passed.next() else { return false };
        let first = root + first % PAGE;
        let is = |(host, entry): (u64, u64)| {
            // SAFETY: an entry of 8 bytes, aligned, in the guest's RAM, as the caller says.
            unsafe { (host as *const u64).read_volatile() == entry }
        };
        is((first, entry)) && passed.all(|&passed| is(passed))
    }
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
            ac: rflags & flag::ALIGNMENT != 0,
        }
    }

    fn shape(&self) -> Option<Shape> {
        let long = |levels| Shape { levels, index_bits: 9, entry_bytes: 8 };
        match () {
            () if self.cr0 & control::CR0_PG == 0 => None,
            () if self.efer & control::EFER_LMA != 0 && self.cr4 & control::CR4_LA57 != 0 => {
                Some(long(5))
            }
            () if self.efer & control::EFER_LMA != 0 => Some(long(4)),
            () if self.cr4 & control::CR4_PAE != 0 => Some(long(3)),
            () => Some(Shape { levels: 2, index_bits: 10, entry_bytes: 4 }),
        }
    }

    /// The page of the root, where entries have 8 bytes.
    pub(super) fn root(&self) -> u64 {
        self.cr3 & ADDRESS
    }

    /// The same but for the root and RFLAGS.AC, so that a way that holds leads where it led, and allows what it allowed.
    pub(super) fn is_like(&self, other: &Regime) -> bool {
        *self == Regime { cr3: self.cr3, ac: self.ac, ..*other }
    }

    /// Where `linear` lies for an access that stays in its page.
    ///
    /// # Errors
    /// The page fault that the processor would raise, or [`Trouble::Absent`] for tables that are not in RAM.
    pub(super) fn walk(
        &self,
        physical: &Physical<'_>,
        linear: u64,
        access: Access,
    ) -> Result<Walk, Trouble> {
        let Some(shape) = self.shape() else {
            return Ok(Walk { gpa: linear & 0xffff_ffff, way: Way::NONE, rights: Rights::ALL });
        };
        let fault = |present: bool, more: u32| {
            let mut code = more;
            code |= if present { page_fault::PRESENT } else { 0 };
            code |= if access == Access::Write { page_fault::WRITE } else { 0 };
            code |= if self.user { page_fault::USER } else { 0 };
            let told =
                access == Access::Fetch && (self.no_execute() || self.cr4 & control::CR4_SMEP != 0);
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
        // Nothing is set before all of it is allowed.
        let mut tables = [(0, 0); LEVELS];
        let mut nr_tables = 0;
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
                (4, 1) => self.cr4 & control::CR4_PSE != 0,
                (_, 1) => true,
                (_, 2) => !pae,
                _ => false,
            };
            if level > 0 && !(may_be_large && entry & LARGE != 0) {
                if entry & LARGE != 0 && level > 2 {
                    return fault(true, page_fault::RESERVED);
                }
                if !is_pointer {
                    tables[nr_tables] = (at, entry);
                    nr_tables += 1;
                }
                let mask = if shape.entry_bytes == 4 { 0xffff_f000 } else { ADDRESS };
                table = entry & mask;
                continue;
            }
            if !self.permits(allowed, executable, access) {
                return fault(true, 0);
            }
            let mut way = Way::NONE;
            let dirty = if access == Access::Write { DIRTY } else { 0 };
            let tables = tables[..nr_tables].iter().map(|&(at, entry)| (at, entry, ACCESSED));
            for (at, entry, bits) in tables.chain([(at, entry, ACCESSED | dirty)]) {
                let host = set(physical, at, entry, bits, shape.entry_bytes)?;
                // The others are no 64-bit code's.
                if shape.levels > 3 {
                    way.push(host, entry | bits);
                }
            }
            let within = (1u64 << shift) - 1;
            let frame = match shape.entry_bytes {
                // Bits 20:13 of a 4 MiB entry are bits 39:32 of its frame.
                4 if level == 1 => (entry & 0xffc0_0000) | ((entry & 0x1f_e000) << 19),
                4 => entry & 0xffff_f000,
                _ => entry & ADDRESS & !within,
            };
            let dirty = (entry | dirty) & DIRTY != 0;
            let rights = self.rights(allowed, executable, dirty);
            return Ok(Walk { gpa: frame | (linear & within), way, rights });
        }
        unreachable!("the last level has no tables below it")
    }

    /// What else is allowed where a walk came through with these.
    fn rights(&self, allowed: u64, executable: bool, dirty: bool) -> Rights {
        let mut rights = Rights::NONE;
        for access in [Access::Read, Access::Write, Access::Fetch] {
            for ac in [false, true] {
                let permits = Regime { ac, ..*self }.permits(allowed, executable, access);
                if permits && (access != Access::Write || dirty) {
                    rights.0 |= Rights::bit(access, ac);
                }
            }
        }
        rights
    }

    /// The same with another RFLAGS.AC.
    pub(super) fn with_ac(self, ac: bool) -> Regime {
        Regime { ac, ..self }
    }

    fn no_execute(&self) -> bool {
        self.efer & control::EFER_NXE != 0
    }

    /// Whether a translation with these rights allows the access (SDM vol. 3A, 4.6.1).
    fn permits(&self, allowed: u64, executable: bool, access: Access) -> bool {
        let users_page = allowed & USER != 0;
        if self.user && !users_page {
            return false;
        }
        match access {
            Access::Fetch => {
                executable && (self.user || !users_page || self.cr4 & control::CR4_SMEP == 0)
            }
            Access::Read | Access::Write => {
                let smap =
                    !self.user && users_page && self.cr4 & control::CR4_SMAP != 0 && !self.ac;
                let read_only =
                    allowed & WRITABLE == 0 && (self.user || self.cr0 & control::CR0_WP != 0);
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
/// Gives where it is in this process.
fn set(physical: &Physical<'_>, at: u64, entry: u64, bits: u64, size: u64) -> Result<u64, Trouble> {
    let missing = entry & bits != bits;
    let slice = physical.slice(at, size as usize, missing)?;
    // An entry is aligned. One that has been changed meanwhile is left as it is.
    if !missing {
    } else if size == 4 {
        let word = slice.get_atomic_ref::<AtomicU32>(0).expect("it is aligned");
        let (old, new) = (entry as u32, (entry | bits) as u32);
        let _ = word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed);
    } else {
        let word = slice.get_atomic_ref::<AtomicU64>(0).expect("it is aligned");
        let _ = word.compare_exchange(entry, entry | bits, Ordering::SeqCst, Ordering::Relaxed);
    }
    Ok(slice.ptr_guard().as_ptr() as u64)
}
