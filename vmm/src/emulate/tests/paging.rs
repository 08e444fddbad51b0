//! Walks of page tables: every kind of paging, its permissions, bits that are set, and error codes.
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::kvm_sregs;

use crate::emulate::cpu::control::{
    CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE,
};
use crate::emulate::cpu::flag;
use crate::emulate::exception::Exception;
use crate::emulate::linear::{Access, Linear, Trouble};
use crate::emulate::paging::Regime;
use crate::emulate::paging::entry::{ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};
use crate::emulate::physical::Physical;
use crate::emulate::tlb::{Tlb, Translations};
use crate::kvm::Slot;
use crate::ram::Ram;

const BYTES: u64 = 0x10000;
/// Tables, from the root down.
const TABLES: [u64; 5] = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000];

const ALL: u64 = PRESENT | WRITABLE | USER;
/// Protected mode with paging.
const CR0_PAGING: u64 = CR0_PG | 1;

/// 64 KiB at 0.
#[derive(Debug)]
pub(super) struct Memory(Box<[AtomicU64]>);

impl Memory {
    pub(super) fn new() -> Memory {
        Memory((0..BYTES / 8).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn put(&self, at: u64, entry: u64) {
        self.0[at as usize / 8].store(entry, Ordering::SeqCst);
    }

    pub(super) fn at(&self, at: u64) -> u64 {
        self.0[at as usize / 8].load(Ordering::SeqCst)
    }

    fn put_half(&self, at: u64, entry: u32) {
        let shift = 8 * (at % 8);
        let other = self.at(at & !7) & !(0xffff_ffff << shift);
        self.put(at & !7, other | u64::from(entry) << shift);
    }

    fn half(&self, at: u64) -> u64 {
        self.at(at & !7) >> (8 * (at % 8)) & 0xffff_ffff
    }
}

impl Ram for Memory {
    fn slots(&self) -> Vec<Slot> {
        vec![Slot { gpa: 0, hva: self.0.as_ptr() as u64, bytes: BYTES }]
    }

    fn read(&self, _: u64, _: &mut [u8]) -> bool {
        unreachable!("a walk goes through the window")
    }

    fn ready(&self, gpa: u64, _write: bool) -> bool {
        gpa < BYTES
    }
}

/// A machine with tables in it.
struct Machine {
    memory: Memory,
    sregs: kvm_sregs,
    rflags: u64,
}

impl Machine {
    fn new(cr0: u64, cr4: u64, efer: u64) -> Machine {
        let sregs = kvm_sregs { cr0, cr3: TABLES[0], cr4, efer, ..kvm_sregs::default() };
        Machine { memory: Memory::new(), sregs, rflags: 0 }
    }

    /// 64-bit mode with everything that guards.
    fn long() -> Machine {
        let cr4 = CR4_PAE | CR4_SMEP | CR4_SMAP;
        Machine::new(CR0_PAGING | CR0_WP, cr4, EFER_LMA | EFER_NXE)
    }

    /// Maps `linear` by `levels` entries with everything allowed, the last one being `leaf`; where those entries are.
    fn map(&self, linear: u64, root_level: u32, leaf_level: u32, leaf: u64) -> Vec<u64> {
        let levels = (leaf_level..=root_level).rev();
        let entry = |(depth, level): (usize, u32)| {
            let at = TABLES[depth] + 8 * (linear >> (12 + 9 * level) & 511);
            let next = if level == leaf_level { leaf } else { TABLES[depth + 1] | ALL };
            self.memory.put(at, next);
            at
        };
        levels.enumerate().map(entry).collect()
    }

    fn translate(&self, linear: u64, access: Access) -> Result<u64, Trouble> {
        let regime = Regime::of(&self.sregs, self.rflags);
        regime.walk(&Physical::of(&self.memory), linear, access).map(|walk| walk.gpa)
    }

    fn user(&mut self) {
        self.sregs.ss.dpl = 3;
    }
}

fn fault(linear: u64, code: u32) -> Result<u64, Trouble> {
    Err(Exception::page_fault(linear, code).into())
}

#[test]
fn without_paging_addresses_have_32_bits() {
    let machine = Machine::new(1, 0, 0);
    assert_eq!(machine.translate(0x1_2345_6789, Access::Write), Ok(0x2345_6789));
}

#[test]
fn four_levels() {
    let linear = 0xffff_8123_4567_8abc;
    for (leaf_level, frame, expected) in [
        (0, 0x7_1234_5000, 0x7_1234_5abc),
        (1, 0x7_1220_0000 | LARGE, 0x7_1220_0000 | linear & 0x1f_ffff),
        (2, 0x7_4000_0000 | LARGE, 0x7_4000_0000 | linear & 0x3fff_ffff),
    ] {
        let machine = Machine::long();
        let entries = machine.map(linear, 3, leaf_level, frame | PRESENT | WRITABLE);
        assert_eq!(machine.translate(linear, Access::Read), Ok(expected));
        for at in &entries {
            assert_eq!(machine.memory.at(*at) & (ACCESSED | DIRTY), ACCESSED);
        }
        assert_eq!(machine.translate(linear, Access::Write), Ok(expected));
        let (leaf, tables) = entries.split_last().unwrap();
        assert_eq!(machine.memory.at(*leaf) & DIRTY, DIRTY);
        assert!(tables.iter().all(|at| machine.memory.at(*at) & DIRTY == 0));
    }
}

#[test]
fn five_levels() {
    let mut machine = Machine::long();
    machine.sregs.cr4 |= CR4_LA57;
    let linear = 0x00ab_cdef_0123_4567;
    let entries = machine.map(linear, 4, 0, 0x9000 | PRESENT);
    assert_eq!(entries.len(), 5);
    assert_eq!(machine.translate(linear, Access::Read), Ok(0x9567));
    assert_eq!(machine.translate(linear ^ 1 << 50, Access::Read), fault(linear ^ 1 << 50, 0));
}

#[test]
fn physical_address_extension() {
    let mut machine = Machine::new(CR0_PAGING, CR4_PAE, EFER_NXE);
    // The pointers may lie anywhere at 32 bytes.
    machine.sregs.cr3 = 0x1020;
    let linear = 0xc060_3123;
    machine.memory.put(0x1020 + 3 * 8, 0x2000 | PRESENT);
    machine.memory.put(0x2000 + 3 * 8, 0x3000 | ALL);
    machine.memory.put(0x3000 + 3 * 8, 0x5_4321_0000 | ALL);
    assert_eq!(machine.translate(linear, Access::Write), Ok(0x5_4321_0123));
    assert_eq!(machine.memory.at(0x1020 + 24) & ACCESSED, 0);
    assert_eq!(machine.memory.at(0x2000 + 24) & ACCESSED, ACCESSED);
    machine.memory.put(0x2000 + 3 * 8, 0x5_4320_0000 | ALL | LARGE);
    assert_eq!(machine.translate(linear, Access::Write), Ok(0x5_4320_3123));
    // A pointer has no permissions: the user may pass.
    machine.user();
    assert_eq!(machine.translate(linear, Access::Write), Ok(0x5_4320_3123));
}

#[test]
fn thirty_two_bits() {
    let machine = Machine::new(CR0_PAGING, CR4_PSE, 0);
    let linear = 0x0040_5678;
    machine.memory.put_half(0x1000 + 4, 0x2000 | ALL as u32);
    machine.memory.put_half(0x2000 + 4 * 5, 0xabcd_e000 | ALL as u32);
    assert_eq!(machine.translate(linear, Access::Write), Ok(0xabcd_e678));
    assert_eq!(machine.memory.half(0x1004) & ACCESSED, ACCESSED);
    assert_eq!(machine.memory.half(0x2014) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    // 4 MiB, with bits 39:32 of the frame where the low ones would be.
    machine.memory.put_half(0x1000 + 4, 0x8040_0000 | 0x2000 | (ALL | LARGE) as u32);
    assert_eq!(machine.translate(linear, Access::Write), Ok(0x1_8040_5678));
    // Without PSE the bit says nothing.
    let mut machine = Machine::new(CR0_PAGING, 0, 0);
    machine.memory.put_half(0x1000 + 4, 0x2000 | (ALL | LARGE) as u32);
    machine.memory.put_half(0x2000 + 4 * 5, 0xabcd_e000 | PRESENT as u32);
    assert_eq!(machine.translate(linear, Access::Read), Ok(0xabcd_e678));
    // CR0.WP is clear: a kernel writes what is read-only, a user does not.
    assert_eq!(machine.translate(linear, Access::Write), Ok(0xabcd_e678));
    machine.user();
    assert_eq!(machine.translate(linear, Access::Write), fault(linear, 0b111));
}

#[test]
fn what_a_kernel_may_do() {
    let linear = 0x12_3456_7000;
    let kernels = PRESENT | WRITABLE;
    let code = |machine: &Machine, leaf: u64, access| {
        machine.map(linear, 3, 0, leaf | 0x9000);
        match machine.translate(linear, access) {
            Ok(_) => None,
            Err(Trouble::Raised(exception)) => exception.code,
            Err(other) => panic!("{other:?}"),
        }
    };
    let mut machine = Machine::long();
    assert_eq!(code(&machine, kernels, Access::Write), None);
    assert_eq!(code(&machine, kernels, Access::Fetch), None);
    assert_eq!(code(&machine, PRESENT, Access::Write), Some(0b00011));
    assert_eq!(code(&machine, kernels | NO_EXECUTE, Access::Fetch), Some(0b10001));
    assert_eq!(code(&machine, kernels | NO_EXECUTE, Access::Read), None);
    assert_eq!(code(&machine, 0, Access::Read), Some(0));
    assert_eq!(code(&machine, 0, Access::Write), Some(0b00010));
    assert_eq!(code(&machine, 0, Access::Fetch), Some(0b10000));
    // SMAP and SMEP.
    assert_eq!(code(&machine, ALL, Access::Read), Some(0b00001));
    assert_eq!(code(&machine, ALL, Access::Write), Some(0b00011));
    assert_eq!(code(&machine, ALL, Access::Fetch), Some(0b10001));
    machine.rflags = flag::ALIGNMENT;
    assert_eq!(code(&machine, ALL, Access::Write), None);
    assert_eq!(code(&machine, ALL, Access::Fetch), Some(0b10001));
    machine.sregs.cr4 = CR4_PAE;
    machine.rflags = 0;
    assert_eq!(code(&machine, ALL, Access::Read), None);
    assert_eq!(code(&machine, ALL, Access::Fetch), None);
    // Neither NXE nor SMEP: a fetch is not told from a read.
    machine.sregs.efer = EFER_LMA;
    assert_eq!(code(&machine, 0, Access::Fetch), Some(0));
}

#[test]
fn what_a_user_may_do() {
    let linear = 0x12_3456_7000;
    let mut machine = Machine::long();
    machine.user();
    let entries = machine.map(linear, 3, 0, 0x9000 | ALL);
    for access in [Access::Read, Access::Write, Access::Fetch] {
        assert_eq!(machine.translate(linear, access), Ok(0x9000));
    }
    // Every level has to allow it.
    for at in entries {
        let entry = machine.memory.at(at);
        machine.memory.put(at, entry & !USER);
        assert_eq!(machine.translate(linear, Access::Read), fault(linear, 0b00101));
        machine.memory.put(at, entry & !WRITABLE);
        assert_eq!(machine.translate(linear, Access::Write), fault(linear, 0b00111));
        assert_eq!(machine.translate(linear, Access::Read), Ok(0x9000));
        machine.memory.put(at, entry | NO_EXECUTE);
        assert_eq!(machine.translate(linear, Access::Fetch), fault(linear, 0b10101));
        machine.memory.put(at, entry & !PRESENT);
        assert_eq!(machine.translate(linear, Access::Read), fault(linear, 0b00100));
        machine.memory.put(at, entry);
    }
}

/// A walk that faults leaves the leaf's bits.
#[test]
fn a_fault_sets_no_bit_of_the_page() {
    let linear = 0x12_3456_7000;
    let machine = Machine::long();
    let entries = machine.map(linear, 3, 0, 0x9000 | PRESENT);
    assert_eq!(machine.translate(linear, Access::Write), fault(linear, 0b00011));
    assert_eq!(machine.memory.at(entries[3]) & (ACCESSED | DIRTY), 0);
}

#[test]
fn the_top_levels_have_no_large_pages() {
    let linear = 0x12_3456_7000;
    let machine = Machine::long();
    let entries = machine.map(linear, 3, 0, 0x9000 | PRESENT);
    machine.memory.put(entries[0], machine.memory.at(entries[0]) | LARGE);
    assert_eq!(machine.translate(linear, Access::Read), fault(linear, 0b01001));
}

#[test]
fn tables_that_are_not_there() {
    let mut machine = Machine::long();
    machine.sregs.cr3 = 0x20000;
    assert_eq!(machine.translate(0, Access::Read), Err(Trouble::Absent(0x20000)));
}

/// Over the end of a page, nothing is written where a part cannot be.
#[test]
fn over_two_pages() {
    let machine = Machine::long();
    machine.map(0x1000, 3, 0, 0x8000 | PRESENT | WRITABLE);
    machine.memory.put(0x4000 + 8 * 2, 0x9000 | PRESENT);
    let regime = Regime::of(&machine.sregs, 0);
    let translations = Translations::default();
    let paged = Tlb::new(Physical::of(&machine.memory), regime, &translations);
    machine.memory.put(0x8ff8, 0x1122_3344_5566_7788);
    machine.memory.put(0x9000, 0x99aa_bbcc_ddee_ff00);
    assert_eq!(paged.load(0x1ffc, 8), Ok(0xddee_ff00_1122_3344));
    let refused = paged.store(0x1ffc, 8, 0);
    assert_eq!(refused, Err(Exception::page_fault(0x2000, 0b00011).into()));
    assert_eq!(machine.memory.at(0x8ff8), 0x1122_3344_5566_7788);
    machine.memory.put(0x4000 + 8 * 2, 0x9000 | PRESENT | WRITABLE);
    assert_eq!(paged.store(0x1ffc, 8, u64::MAX), Ok(()));
    assert_eq!(machine.memory.at(0x8ff8), 0xffff_ffff_5566_7788);
    assert_eq!(machine.memory.at(0x9000), 0x99aa_bbcc_ffff_ffff);
    // A locked one would need the bus.
    assert_eq!(paged.exchange(0x1ffc, 8, &mut |old| old), Err(Trouble::Unknown));
}

/// A page at 0x1000, with its entries, and one stay of the vCPU after the other.
struct Stays {
    machine: Machine,
    entries: Vec<u64>,
    translations: Translations,
}

impl Stays {
    fn new() -> Stays {
        let machine = Machine::long();
        let entries = machine.map(0x1000, 3, 0, 0x8000 | PRESENT | WRITABLE);
        machine.memory.put(0x8000, 8);
        machine.memory.put(0x9000, 9);
        Stays { machine, entries, translations: Translations::default() }
    }

    fn stay<R>(&self, act: impl FnOnce(&Tlb<'_>) -> R) -> R {
        let regime = Regime::of(&self.machine.sregs, self.machine.rflags);
        act(&Tlb::new(Physical::of(&self.machine.memory), regime, &self.translations))
    }

    fn load(&self) -> Result<u64, Trouble> {
        self.stay(|tlb| tlb.load(0x1000, 8))
    }
}

/// A guest tells its processor of a change, and whoever ran the vCPU meanwhile may have heard it: what was kept is looked at.
#[test]
fn a_translation_that_was_kept_is_good_while_its_entries_are_the_same() {
    let stays = Stays::new();
    let leaf = stays.entries[3];
    assert_eq!(stays.load(), Ok(8));
    assert_eq!(stays.load(), Ok(8));
    // Within one stay it may be old, as in a processor.
    stays.stay(|tlb| {
        assert_eq!(tlb.load(0x1000, 8), Ok(8));
        stays.machine.memory.put(leaf, 0x9000 | PRESENT | WRITABLE);
        assert_eq!(tlb.load(0x1000, 8), Ok(8));
    });
    assert_eq!(stays.load(), Ok(9));
    // Any level counts.
    for &at in &stays.entries {
        let entry = stays.machine.memory.at(at);
        stays.machine.memory.put(at, 0);
        assert_eq!(stays.load(), Err(Exception::page_fault(0x1000, 0).into()));
        stays.machine.memory.put(at, entry);
        assert_eq!(stays.load(), Ok(9));
    }
}

/// Dirty bits that the guest clears are set again, and rights that it takes are gone.
#[test]
fn rights_are_those_of_the_last_walk() {
    let stays = Stays::new();
    let leaf = stays.entries[3];
    let store = || stays.stay(|tlb| tlb.store(0x1000, 8, 7));
    assert_eq!(store(), Ok(()));
    assert_eq!(stays.machine.memory.at(leaf) & DIRTY, DIRTY);
    stays.machine.memory.put(leaf, stays.machine.memory.at(leaf) & !DIRTY);
    assert_eq!(store(), Ok(()));
    assert_eq!(stays.machine.memory.at(leaf) & DIRTY, DIRTY);
    stays.machine.memory.put(leaf, 0x8000 | PRESENT);
    assert_eq!(store(), Err(Exception::page_fault(0x1000, 0b00011).into()));
    assert_eq!(stays.load(), Ok(7));
    // A user's page, with SMAP: RFLAGS.AC decides at once.
    for &at in &stays.entries {
        stays.machine.memory.put(at, stays.machine.memory.at(at) | USER);
    }
    stays.stay(|tlb| {
        let refused = Err(Exception::page_fault(0x1000, 0b00001).into());
        assert_eq!(tlb.load(0x1000, 8), refused);
        tlb.set_ac(true);
        assert_eq!(tlb.load(0x1000, 8), Ok(7));
        tlb.set_ac(false);
        assert_eq!(tlb.load(0x1000, 8), refused);
    });
}

/// Other tables with the same upper entries lead to the same page; others do not, nor does another regime.
#[test]
fn a_kernels_translations_outlast_a_change_of_its_tables() {
    let mut stays = Stays::new();
    assert_eq!(stays.load(), Ok(8));
    let other = 0xa000;
    let entry = stays.machine.memory.at(TABLES[0]);
    stays.machine.sregs.cr3 = other;
    assert_eq!(stays.load(), Err(Exception::page_fault(0x1000, 0).into()));
    stays.machine.memory.put(other, entry);
    assert_eq!(stays.load(), Ok(8));
    stays.machine.sregs.cr3 = TABLES[0];
    assert_eq!(stays.load(), Ok(8));
    stays.machine.user();
    assert_eq!(stays.load(), Err(Exception::page_fault(0x1000, 0b00101).into()));
}
