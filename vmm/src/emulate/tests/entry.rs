//! Ways into ring 0 and back: exceptions through gates, the second half of a SYSCALL, IRET; and the stores that KVM has to see.

use iced_x86::{Decoder, DecoderOptions};

use crate::emulate::carry_out;
use crate::emulate::cpu::{Cpu, flag};
use crate::emulate::deliver::through_gate;
use crate::emulate::entries::crossing;
use crate::emulate::exception::{BREAKPOINT, Exception, PAGE_FAULT};
use crate::emulate::linear::{Linear, Trouble};
use crate::emulate::paging::Regime;
use crate::emulate::physical::Physical;
use crate::emulate::syscall::{complete, is_half};
use crate::emulate::tlb::{Tlb, Translations};

use super::paging::Memory;
use super::{Nothing, cpu as at_level};

const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const STACK: u64 = 0x9000;
const HANDLER: u64 = 0xffff_ffff_8123_4567;
const ENTRY: u64 = 0xffff_ffff_81c0_0080;
const CS: u16 = 0x10;

/// Ring 0 over memory that is not paged.
fn machine(memory: &Memory, act: impl FnOnce(&mut Cpu, &Tlb<'_>)) {
    let mut cpu = at_level(0);
    cpu.sregs.cr0 &= !(1 << 31);
    cpu.sregs.cs.selector = CS;
    (cpu.sregs.idt.base, cpu.sregs.idt.limit) = (IDT, 0xfff);
    cpu.sregs.tr.base = TSS;
    (cpu.regs.rsp, cpu.regs.rip, cpu.regs.rflags) = (STACK + 4, 0x1234, 2 | flag::INTERRUPT);
    let translations = Translations::default();
    let regime = Regime::of(&cpu.sregs, cpu.regs.rflags);
    let tlb = Tlb::new(Physical::of(memory), regime, &translations).guarding_tables();
    act(&mut cpu, &tlb);
}

/// A gate of `kind`, with a place in the interrupt stack table.
fn put_gate(memory: &Memory, vector: u8, kind: u64, ist: u64) {
    let at = IDT + 16 * u64::from(vector);
    let low = HANDLER & 0xffff | u64::from(CS) << 16 | ist << 32 | kind << 40 | 1 << 47;
    memory.put(at, low | (HANDLER >> 16 & 0xffff) << 48);
    memory.put(at + 8, HANDLER >> 32);
}

#[test]
fn an_exception_goes_through_its_gate() {
    let memory = Memory::new();
    put_gate(&memory, PAGE_FAULT, 0xe, 0);
    machine(&memory, |cpu, tlb| {
        assert_eq!(through_gate(cpu, tlb, Exception::page_fault(0x5000, 3)), Ok(true));
        assert_eq!((cpu.regs.rip, cpu.regs.rsp), (HANDLER, STACK - 48));
        assert!(!cpu.flag(flag::INTERRUPT), "an interrupt gate");
        let frame: Vec<u64> = (0..6).map(|word| memory.at(cpu.regs.rsp + 8 * word)).collect();
        let flags = 2 | flag::INTERRUPT | flag::RESUME;
        assert_eq!(frame, [3, 0x1234, CS.into(), flags, STACK + 4, 0]);
    });
}

#[test]
fn a_trap_has_no_code_and_a_stack_of_its_own() {
    let memory = Memory::new();
    put_gate(&memory, BREAKPOINT, 0xf, 2);
    // The table begins in the middle of a word: its second stack is at 2Ch.
    memory.put(TSS + 0x28, 0xa000 << 32);
    machine(&memory, |cpu, tlb| {
        assert_eq!(through_gate(cpu, tlb, Exception::trap(BREAKPOINT)), Ok(true));
        assert_eq!(cpu.regs.rsp, 0xa000 - 40);
        assert!(cpu.flag(flag::INTERRUPT), "a trap gate");
        assert_eq!(memory.at(cpu.regs.rsp), 0x1234);
        assert_eq!(memory.at(cpu.regs.rsp + 16), 2 | flag::INTERRUPT);
    });
}

#[test]
fn what_is_not_ring_0_to_ring_0_is_kvms() {
    let memory = Memory::new();
    put_gate(&memory, PAGE_FAULT, 0xe, 0);
    let fault = Exception::page_fault(0x5000, 3);
    machine(&memory, |cpu, tlb| {
        let before = cpu.regs;
        for spoil in [
            (|cpu: &mut Cpu| cpu.sregs.ss.dpl = 3) as fn(&mut Cpu),
            |cpu| cpu.sregs.cs.selector = 0x18,
            |cpu| cpu.sregs.idt.limit = 0xe0,
            |cpu| cpu.sregs.cs.l = 0,
        ] {
            let mut cpu = cpu.clone();
            spoil(&mut cpu);
            assert_eq!(through_gate(&mut cpu, tlb, fault), Ok(false));
            assert_eq!(cpu.regs, before);
        }
        assert_eq!(through_gate(cpu, tlb, Exception::trap(BREAKPOINT)), Ok(false), "no gate");
    });
}

/// What a KVM leaves that has carried out half a SYSCALL from 0x40_1000.
fn half_done(cpu: &mut Cpu, memory: &Memory) {
    cpu.regs.rsp = STACK - 48;
    let flags = 2 | flag::RESUME;
    for (word, value) in [0x15, ENTRY, 0x33, flags, 0x7fff_0000, 0x2b].into_iter().enumerate() {
        memory.put(cpu.regs.rsp + 8 * word as u64, value);
    }
    cpu.sregs.cr2 = ENTRY;
    (cpu.regs.rcx, cpu.regs.r11) = (0x40_1000, 2 | flag::INTERRUPT);
}

#[test]
fn half_a_system_call_is_completed() {
    let memory = Memory::new();
    machine(&memory, |cpu, tlb| {
        half_done(cpu, &memory);
        assert_eq!(is_half(cpu, tlb, ENTRY), Ok(true));
        assert_eq!(complete(cpu, tlb, 0x0023_0010_0000_0000), Ok(()));
        assert_eq!((cpu.regs.rip, cpu.regs.rsp, cpu.regs.rflags), (ENTRY, 0x7fff_0000, 2));
        assert_eq!((cpu.sregs.cs.selector, cpu.sregs.cs.dpl, cpu.sregs.cs.l), (0x10, 0, 1));
        assert_eq!((cpu.sregs.ss.selector, cpu.sregs.ss.dpl), (0x18, 0));
        assert_eq!((cpu.regs.rcx, cpu.regs.r11), (0x40_1000, 2 | flag::INTERRUPT));
    });
}

/// A program that jumps to the entry may be taken for one that calls; one that wants flags by it may not.
#[test]
fn other_faults_stay_faults() {
    let memory = Memory::new();
    machine(&memory, |cpu, tlb| {
        half_done(cpu, &memory);
        let at = cpu.regs.rsp;
        assert_eq!(is_half(cpu, tlb, ENTRY + 1), Ok(false), "not the entry");
        for (word, value) in [(0, 0x5), (2, 0x10)] {
            let good = memory.at(at + 8 * word);
            memory.put(at + 8 * word, value);
            assert_eq!(is_half(cpu, tlb, ENTRY), Ok(false), "a read, or from ring 0");
            memory.put(at + 8 * word, good);
        }
        for flags in [2, 2 | flag::INTERRUPT | flag::IOPL, 2 | flag::INTERRUPT | 1 << 12] {
            cpu.regs.r11 = flags;
            assert_eq!(is_half(cpu, tlb, ENTRY), Ok(false), "flags {flags:#x}");
        }
    });
}

#[test]
fn iret_returns_within_ring_0() {
    let memory = Memory::new();
    machine(&memory, |cpu, tlb| {
        cpu.regs.rsp = STACK;
        let flags = 2 | flag::CARRY | flag::ALIGNMENT;
        for (word, value) in [0x5000, CS.into(), flags, 0x8000, 0].into_iter().enumerate() {
            memory.put(STACK + 8 * word as u64, value);
        }
        let bytes = [0x48, 0xcf];
        let iret = Decoder::with_ip(64, &bytes, 0x1000, DecoderOptions::NONE).decode();
        for (word, other) in [(1, 0x33), (4, 0x2b)] {
            let good = memory.at(STACK + 8 * word);
            memory.put(STACK + 8 * word, other);
            let before = cpu.regs.rsp;
            assert_eq!(carry_out(&iret, cpu, tlb, &Nothing), Err(Trouble::Unknown));
            assert_eq!(cpu.regs.rsp, before);
            memory.put(STACK + 8 * word, good);
        }
        assert_eq!(carry_out(&iret, cpu, tlb, &Nothing), Ok(()));
        assert_eq!((cpu.regs.rip, cpu.regs.rsp, cpu.regs.rflags), (0x5000, 0x8000, flags));
    });
}

/// As Linux has it: a byte that says which vector it was, and a jump.
#[test]
fn the_handlers_of_devices_are_watched_where_they_meet() {
    const STUBS: u64 = 0xb000;
    let memory = Memory::new();
    let stub = |at: u64, number: u8, target: u64| {
        // push number; jmp target
        let distance = (target as i64 - (at as i64 + 7)) as u32;
        let [a, b, c, d] = distance.to_le_bytes();
        memory.put(at, u64::from_le_bytes([0x6a, number, 0xe9, a, b, c, d, 0x90]));
    };
    let gate = |vector: u64, handler: u64| {
        let low = handler & 0xffff | u64::from(CS) << 16 | 0xe << 40 | 1 << 47;
        memory.put(IDT + 16 * vector, low | (handler >> 16) << 48);
    };
    machine(&memory, |cpu, tlb| {
        assert_eq!(crossing(cpu, tlb), None, "there is no gate");
        gate(0x30, STUBS);
        gate(0x31, STUBS + 8);
        assert_eq!(
            crossing(cpu, tlb),
            None,
            "the first instruction is an add, and so are those behind it"
        );
        stub(STUBS, 0x30, 0xc000);
        assert_eq!(crossing(cpu, tlb), None, "one of them goes nowhere");
        stub(STUBS + 8, 0x31, 0xc100);
        assert_eq!(crossing(cpu, tlb), None, "they do not meet");
        stub(STUBS + 8, 0x31, 0xc000);
        assert_eq!(crossing(cpu, tlb), Some(0xc000));
    });
}

/// A store to an entry of a page table is refused, whatever its width and whether it is locked; what cannot be one is written.
#[test]
fn entries_of_page_tables_are_kvms_to_change() {
    const TABLE: u64 = 0x8000;
    let entry = 0x8000_0000_0000_0067 | 0x5000;
    let memory = Memory::new();
    machine(&memory, |_, tlb| {
        memory.put(TABLE + 8, entry);
        for width in [1, 2, 4, 8] {
            assert_eq!(tlb.store(TABLE + 8, width, 0), Err(Trouble::Table));
            let mut never = |_: u64| unreachable!("nothing is exchanged");
            assert_eq!(tlb.exchange(TABLE + 8, width, &mut never), Err(Trouble::Table));
        }
        assert_eq!(memory.at(TABLE + 8), entry);
        // Not present; not the user's; not accessed; of page 0; of no RAM; with bits that no entry has.
        let others = [entry & !1, entry & !4, entry & !32, 0x67, 0x4000_0067, entry | 1 << 52];
        for other in others {
            memory.put(TABLE + 8, other);
            assert_eq!(tlb.store(TABLE + 8, 8, 0), Ok(()), "{other:#x}");
        }
        // A page with an odd address of the kernel's is none.
        memory.put(TABLE + 8, entry);
        memory.put(TABLE + 0x800, HANDLER);
        assert_eq!(tlb.store(TABLE + 8, 8, 1), Ok(()));
        assert_eq!(memory.at(TABLE + 8), 1);
    });
}
