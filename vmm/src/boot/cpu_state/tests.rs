use vm_memory::Bytes;

use super::super::layout::RamLayout;
use super::*;

fn staging() -> Staging {
    Staging::new(RamLayout::new(2 << 20).unwrap()).unwrap()
}

fn word(staging: &Staging, at: u64) -> u64 {
    staging.memory().read_obj(GuestAddress(at)).unwrap()
}

/// Translates as the CPU would: (physical address, flags of all levels).
fn walk(staging: &Staging, address: u64) -> Option<(u64, u64)> {
    let (mut table, mut flags) = (PML4.0, u64::MAX);
    for shift in [39, 30, 21] {
        let entry = word(staging, table + (address >> shift & 511) * 8);
        if entry & PRESENT == 0 {
            return None;
        }
        flags &= entry & 0xfff;
        if entry & LARGE != 0 {
            let offset = address & ((1 << shift) - 1);
            return Some(((entry & !0xfff) | offset, flags));
        }
        table = entry & !0xfff;
    }
    None
}

#[test]
fn either_identity_map_covers_exactly_the_first_4_gib() {
    for (pages, nr_tables) in [(IdentityPages::TwoMib, 6), (IdentityPages::OneGib, 2)] {
        let mut staging = staging();
        place_identity_map(&mut staging, IdentityMap { pages, access: IdentityAccess::Supervisor })
            .unwrap();
        for address in [0, 0x1234, 0x20_0000, 0x3fff_ffff, 0xc000_0000, 0xffff_ffff] {
            let (physical, flags) = walk(&staging, address).unwrap();
            assert_eq!((physical, flags & (WRITABLE | USER)), (address, WRITABLE));
        }
        assert_eq!(walk(&staging, 4 * GIB), None);
        let (_, extents) = staging.finish();
        assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), nr_tables * PAGE_SIZE);
    }
}

#[test]
fn ring_3_may_use_the_map_only_when_asked_for() {
    let mut staging = staging();
    let map = IdentityMap { pages: IdentityPages::OneGib, access: IdentityAccess::User };
    place_identity_map(&mut staging, map).unwrap();
    assert_eq!(walk(&staging, 0x10_0000).unwrap().1 & USER, USER);
}

#[test]
fn the_gdt_holds_the_descriptors_that_the_segments_were_filled_from() {
    for (mode, code) in [(Mode::Linux64, 0x00af_9b00_0000_ffff), (Mode::Pvh, 0x00cf_9b00_0000_ffff)]
    {
        let mut staging = staging();
        place_gdt(&mut staging, mode).unwrap();
        let gdt: Vec<_> = (0..6).map(|index| word(&staging, GDT.0 + index * 8)).collect();
        assert_eq!(gdt, [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0]);
    }
}

#[test]
fn the_64_bit_protocol_starts_in_long_mode_with_rsi_at_the_zero_page() {
    let entry = Entry::linux64(0x100_0000, GuestAddress(0x7000));
    let mut sregs = kvm_sregs { apic_base: 0xfee0_0900, ..kvm_sregs::default() };
    entry.fill_sregs(&mut sregs);
    assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.selector), (1, 0, 0x10));
    assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x8000_0011, 0x9000, 0x20, 0x500));
    assert_eq!(sregs.apic_base, 0xfee0_0900);
    let regs = entry.regs();
    assert_eq!((regs.rip, regs.rsi, regs.rbx, regs.rflags), (0x100_0000, 0x7000, 0, 2));
    assert_eq!(regs.rsp % 16, 0);
}

#[test]
fn pvh_starts_in_flat_32_bit_mode_without_paging_with_ebx_at_the_start_info() {
    let entry = Entry::pvh(0x100_0200, GuestAddress(0x6000));
    let mut sregs = kvm_sregs::default();
    entry.fill_sregs(&mut sregs);
    assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit, sregs.cs.base), (0, 1, u32::MAX, 0));
    assert_eq!((sregs.cr0 & !CR0_ET, sregs.cr4, sregs.efer), (CR0_PE, 0, 0));
    assert_eq!((sregs.tr.base, sregs.tr.limit, sregs.tr.type_), (0, 0x67, 0xb));
    let regs = entry.regs();
    assert_eq!((regs.rip, regs.rbx, regs.rsi), (0x100_0200, 0x6000, 0));
}
