//! What only a kernel does, and code that is not of 64 bits.

use std::cell::RefCell;
use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions};

use crate::emulate::carry_out;
use crate::emulate::cpu::{Beyond, Cpu, control, flag};
use crate::emulate::exception::{GENERAL_PROTECTION, INVALID_OPCODE, PAGE_FAULT};
use crate::emulate::linear::{Linear, Trouble};

use super::cpu as at_level;
use super::native::Arena;

const TSC: u32 = 0x10;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// A vCPU with model-specific registers.
struct Registers(RefCell<BTreeMap<u32, u64>>);

impl Registers {
    fn new(values: &[(u32, u64)]) -> Registers {
        Registers(RefCell::new(values.iter().copied().collect()))
    }
}

impl Beyond for Registers {
    fn msr(&self, index: u32) -> Result<u64, Trouble> {
        let none = Trouble::State("a model-specific register");
        self.0.borrow().get(&index).copied().ok_or(none)
    }
    fn set_msr(&self, index: u32, value: u64) -> Result<(), Trouble> {
        self.msr(index)?;
        self.0.borrow_mut().insert(index, value);
        Ok(())
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Result<[u32; 4], Trouble> {
        Ok([leaf, 2, subleaf, 4])
    }
    fn tsc(&self) -> Result<u64, Trouble> {
        self.msr(TSC)
    }
    fn exchange_kernel_gs(&self, value: u64) -> Result<u64, Trouble> {
        let was = self.msr(KERNEL_GS_BASE)?;
        self.0.borrow_mut().insert(KERNEL_GS_BASE, value);
        Ok(was)
    }
}

fn run(arena: &Arena, cpu: &mut Cpu, registers: &Registers, bytes: &[u8]) -> Result<(), Trouble> {
    cpu.regs.rip = 0x1000;
    let instruction = Decoder::with_ip(cpu.bitness(), bytes, 0x1000, DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "{bytes:02x?}");
    carry_out(&instruction, cpu, arena, registers)
}

fn raised(arena: &Arena, cpu: &Cpu, bytes: &[u8]) -> u8 {
    match run(arena, &mut cpu.clone(), &Registers::new(&[]), bytes) {
        Err(Trouble::Raised(exception)) => exception.vector,
        other => panic!("{bytes:02x?}: {other:?}"),
    }
}

#[test]
fn time_and_place() {
    let arena = Arena::new();
    let mut cpu = at_level(3);
    let registers = Registers::new(&[(TSC, 0x1234_5678_9abc_def0), (TSC_AUX, 0xff_0000_0007)]);
    assert_eq!(run(&arena, &mut cpu, &registers, &[0x0f, 0x01, 0xf9]), Ok(())); // rdtscp
    assert_eq!((cpu.regs.rdx, cpu.regs.rax, cpu.regs.rcx), (0x1234_5678, 0x9abc_def0, 7));
    assert_eq!(run(&arena, &mut cpu, &registers, &[0xf3, 0x0f, 0xc7, 0xfb]), Ok(())); // rdpid rbx
    assert_eq!(cpu.regs.rbx, 7);
    // Nothing is changed where a part is not told.
    let mut other = at_level(3);
    let registers = Registers::new(&[(TSC, 5)]);
    assert!(run(&arena, &mut other, &registers, &[0x0f, 0x01, 0xf9]).is_err());
    assert_eq!(other.regs.rax, 0);
}

/// What a tick writes is KVM's to have at once; every other register is KVM's to write.
#[test]
fn registers_of_a_tick() {
    const DEADLINE: u32 = 0x6e0;
    const EOI: u32 = 0x80b;
    const LSTAR: u32 = 0xc000_0082;
    let wrmsr = [0x0f, 0x30];
    let arena = Arena::new();
    let registers = Registers::new(&[(DEADLINE, 1), (EOI, 1), (LSTAR, 1)]);
    let mut cpu = at_level(0);
    (cpu.regs.rdx, cpu.regs.rax) = (!0 << 32 | 0x1234, !0 << 32 | 0x5678_9abc);
    for (index, done) in [(DEADLINE, Ok(())), (EOI, Ok(())), (LSTAR, Err(Trouble::Unknown))] {
        cpu.regs.rcx = !0 << 32 | u64::from(index);
        assert_eq!(run(&arena, &mut cpu, &registers, &wrmsr), done);
        let expected = if done.is_ok() { 0x1234_5678_9abc } else { 1 };
        assert_eq!(registers.msr(index), Ok(expected));
    }
    // What KVM does not take, KVM has to carry out.
    cpu.regs.rcx = DEADLINE.into();
    assert_eq!(run(&arena, &mut cpu, &Registers::new(&[]), &wrmsr), Err(Trouble::Unknown));
    let mut cpu = at_level(3);
    cpu.regs.rcx = DEADLINE.into();
    assert_eq!(run(&arena, &mut cpu, &registers, &wrmsr), Err(Trouble::Unknown));
}

#[test]
fn bases() {
    let arena = Arena::new();
    let mut cpu = at_level(0);
    let registers = Registers::new(&[(KERNEL_GS_BASE, 0xffff_8000_0000_0000)]);
    cpu.sregs.gs.base = 0x1000;
    cpu.sregs.fs.base = 0x7_0000_2000;
    assert_eq!(run(&arena, &mut cpu, &registers, &[0x0f, 0x01, 0xf8]), Ok(())); // swapgs
    assert_eq!(cpu.sregs.gs.base, 0xffff_8000_0000_0000);
    assert_eq!(registers.msr(KERNEL_GS_BASE), Ok(0x1000));
    assert!(cpu.special_changed);
    assert_eq!(raised(&arena, &at_level(3), &[0x0f, 0x01, 0xf8]), GENERAL_PROTECTION);
    // rdfsbase rax; rdfsbase eax
    assert_eq!(run(&arena, &mut cpu, &registers, &[0xf3, 0x48, 0x0f, 0xae, 0xc0]), Ok(()));
    assert_eq!(cpu.regs.rax, 0x7_0000_2000);
    assert_eq!(run(&arena, &mut cpu, &registers, &[0xf3, 0x0f, 0xae, 0xc0]), Ok(()));
    assert_eq!(cpu.regs.rax, 0x2000);
}

#[test]
fn access_checks() {
    let arena = Arena::new();
    let none = Registers::new(&[]);
    let mut cpu = at_level(0);
    let (clac, stac) = ([0x0f, 0x01, 0xca], [0x0f, 0x01, 0xcb]);
    assert_eq!(raised(&arena, &cpu, &stac), INVALID_OPCODE);
    cpu.sregs.cr4 |= control::CR4_SMAP;
    assert_eq!(run(&arena, &mut cpu, &none, &stac), Ok(()));
    assert!(cpu.flag(flag::ALIGNMENT));
    assert_eq!(run(&arena, &mut cpu, &none, &clac), Ok(()));
    assert!(!cpu.flag(flag::ALIGNMENT));
    cpu.sregs.ss.dpl = 3;
    assert_eq!(raised(&arena, &cpu, &clac), INVALID_OPCODE);
}

#[test]
fn translations_are_forgotten() {
    let arena = Arena::new();
    let none = Registers::new(&[]);
    let invpcid = [0x66, 0x0f, 0x38, 0x82, 0x03]; // invpcid rax, [rbx]
    let mut cpu = at_level(0);
    cpu.regs.rbx = arena.data();
    cpu.regs.rax = 2;
    assert_eq!(run(&arena, &mut cpu, &none, &invpcid), Ok(()));
    assert!(cpu.forget_translations);
    cpu.regs.rax = 4;
    assert_eq!(raised(&arena, &cpu, &invpcid), GENERAL_PROTECTION);
    cpu.regs.rax = 1;
    arena.store(arena.data(), 8, 5).unwrap();
    assert_eq!(raised(&arena, &cpu, &invpcid), GENERAL_PROTECTION);
    cpu.regs.rbx = 0x10;
    assert_eq!(raised(&arena, &cpu, &invpcid), PAGE_FAULT);
    cpu.sregs.ss.dpl = 3;
    assert_eq!(raised(&arena, &cpu, &invpcid), GENERAL_PROTECTION);
}

#[test]
fn random_numbers_and_hints() {
    let arena = Arena::new();
    let none = Registers::new(&[]);
    let mut cpu = at_level(3);
    cpu.regs.rflags = flag::STATUS;
    let mut seen = [0; 2];
    for number in &mut seen {
        assert_eq!(run(&arena, &mut cpu, &none, &[0x48, 0x0f, 0xc7, 0xf0]), Ok(())); // rdrand rax
        assert_eq!(cpu.regs.rflags & flag::STATUS, flag::CARRY);
        *number = cpu.regs.rax;
    }
    assert_ne!(seen[0], seen[1]);
    cpu.regs.rax = arena.data();
    // lfence; mfence; sfence; pause; endbr64; nop [rax]; prefetcht0 [rax]; clflush [rax]; clwb [rax]
    let hints: [&[u8]; 9] = [
        &[0x0f, 0xae, 0xe8],
        &[0x0f, 0xae, 0xf0],
        &[0x0f, 0xae, 0xf8],
        &[0xf3, 0x90],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0x0f, 0x1f, 0x00],
        &[0x0f, 0x18, 0x08],
        &[0x0f, 0xae, 0x38],
        &[0x66, 0x0f, 0xae, 0x30],
    ];
    for bytes in hints {
        let mut after = cpu.clone();
        assert_eq!(run(&arena, &mut after, &none, bytes), Ok(()));
        after.regs.rip = cpu.regs.rip;
        assert_eq!(after.regs, cpu.regs, "{bytes:02x?}");
    }
    cpu.regs.rax = 0x10;
    assert_eq!(raised(&arena, &cpu, &[0x0f, 0xae, 0x38]), PAGE_FAULT);
}

/// 32-bit code: segments have bases, addresses and the stack 32 bits.
#[test]
fn protected_mode() {
    let arena = Arena::new();
    let none = Registers::new(&[]);
    let mut cpu = at_level(0);
    cpu.sregs.efer = 0;
    cpu.sregs.cs.l = 0;
    cpu.sregs.cs.db = 1;
    cpu.sregs.ss.db = 1;
    cpu.sregs.ds.base = arena.data();
    cpu.sregs.ss.base = arena.data();
    cpu.regs.rsp = 0x100;
    cpu.regs.rax = 0x1122_3344;
    assert_eq!(run(&arena, &mut cpu, &none, &[0x50]), Ok(())); // push eax
    assert_eq!(cpu.regs.rsp, 0xfc);
    assert_eq!(arena.load(arena.data() + 0xfc, 8), Ok(0x1122_3344));
    assert_eq!(run(&arena, &mut cpu, &none, &[0x8b, 0x0d, 0xfc, 0, 0, 0]), Ok(())); // mov ecx, [0xfc]
    assert_eq!(cpu.regs.rcx, 0x1122_3344);
    assert_eq!(run(&arena, &mut cpu, &none, &[0xe8, 0, 1, 0, 0]), Ok(())); // call
    assert_eq!((cpu.regs.rip, cpu.regs.rsp), (0x1105, 0xf8));
    assert_eq!(run(&arena, &mut cpu, &none, &[0xc2, 4, 0]), Ok(())); // ret 4
    assert_eq!((cpu.regs.rip, cpu.regs.rsp), (0x1005, 0x100));
    // An offset wraps at 32 bits, and so does the address: lea edx, [eax + eax * 8]
    assert_eq!(run(&arena, &mut cpu, &none, &[0x8d, 0x14, 0xc0]), Ok(()));
    assert_eq!(cpu.regs.rdx, (0x1122_3344 * 9) & 0xffff_ffff);
    // 16-bit addressing: mov cx, [bx + si]
    cpu.regs.rbx = 0xffff;
    cpu.regs.rsi = 0xfd;
    assert_eq!(run(&arena, &mut cpu, &none, &[0x67, 0x66, 0x8b, 0x08]), Ok(()));
    assert_eq!(cpu.regs.rcx, 0x1122_3344);
}
