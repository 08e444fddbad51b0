//! What raises an exception changes nothing else; and what ring 3 of this machine cannot show.

use iced_x86::{Decoder, DecoderOptions};

use crate::emulate::cpu::{Cpu, flag};
use crate::emulate::exception::{
    DIVIDE, Exception, GENERAL_PROTECTION, INVALID_OPCODE, PAGE_FAULT, STACK,
};
use crate::emulate::linear::{Linear, Trouble};
use crate::emulate::{carry_out, cpu};

use super::native::Arena;
use super::{Nothing, cpu as at_level};

/// An address that is not canonical.
const WILD: u64 = 0x8000_0000_0000_0000;

fn run(arena: &Arena, cpu: &mut Cpu, bytes: &[u8]) -> Result<(), Trouble> {
    cpu.regs.rip = 0x1000;
    cpu.regs.rflags |= 2;
    let instruction = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "{bytes:02x?}");
    carry_out(&instruction, cpu, arena, &Nothing)
}

/// The vector that `bytes` raise; registers, flags and RIP are as before.
fn raised(arena: &Arena, cpu: &Cpu, bytes: &[u8]) -> u8 {
    let mut after = cpu.clone();
    match run(arena, &mut after, bytes) {
        Err(Trouble::Raised(exception)) => {
            let mut before = cpu.regs;
            before.rip = 0x1000;
            before.rflags |= 2;
            assert_eq!(before, after.regs, "{bytes:02x?}");
            exception.vector
        }
        other => panic!("{bytes:02x?}: {other:?}"),
    }
}

#[test]
fn nothing_is_changed_where_nothing_is() {
    let arena = Arena::new();
    let mut cpu = at_level(0);
    cpu.regs.rax = 0x1234;
    cpu.regs.rbx = 8;
    cpu.regs.rsp = 0x10;
    cpu.regs.rbp = 0x20;
    cpu.regs.rcx = 1;
    let touching: [&[u8]; 24] = [
        &[0x01, 0x03],       // add [rbx], eax
        &[0xf0, 0x01, 0x03], // lock add [rbx], eax
        &[0x8b, 0x03],       // mov eax, [rbx]
        &[0x89, 0x03],       // mov [rbx], eax
        &[0x87, 0x03],       // xchg [rbx], eax
        &[0x0f, 0xb1, 0x03], // cmpxchg [rbx], eax
        &[0x0f, 0xc1, 0x03], // xadd [rbx], eax
        &[0xff, 0x03],       // inc dword [rbx]
        &[0xf7, 0x1b],       // neg dword [rbx]
        &[0xd3, 0x23],       // shl dword [rbx], cl
        &[0xd3, 0x13],       // rcl dword [rbx], cl
        &[0x0f, 0xab, 0x03], // bts [rbx], eax
        &[0x0f, 0xc7, 0x0b], // cmpxchg8b [rbx]
        &[0x50],             // push rax
        &[0x58],             // pop rax
        &[0x8f, 0x03],       // pop [rbx]
        &[0xc9],             // leave
        &[0xc3],             // ret
        &[0xe8, 0, 0, 0, 0], // call
        &[0x9c],             // pushf
        &[0x9d],             // popf
        &[0xf7, 0x33],       // div dword [rbx]
        &[0xf3, 0xa4],       // rep movsb
        &[0x0f, 0x40, 0x03], // cmovo eax, [rbx]
    ];
    for bytes in touching {
        assert_eq!(raised(&arena, &cpu, bytes), PAGE_FAULT, "{bytes:02x?}");
    }
}

/// What is read can be, what is written cannot: POP to memory leaves the stack pointer.
#[test]
fn pop_to_nowhere_leaves_the_stack() {
    let arena = Arena::new();
    let mut cpu = at_level(0);
    cpu.regs.rsp = arena.data();
    assert_eq!(raised(&arena, &cpu, &[0x8f, 0x03]), PAGE_FAULT);
}

#[test]
fn addresses_that_are_not_canonical() {
    let arena = Arena::new();
    let mut cpu = at_level(0);
    cpu.regs.rax = WILD;
    cpu.regs.rsp = WILD;
    cpu.regs.rbp = WILD;
    assert_eq!(raised(&arena, &cpu, &[0x8b, 0x08]), GENERAL_PROTECTION); // mov ecx, [rax]
    assert_eq!(raised(&arena, &cpu, &[0x8b, 0x4d, 0]), STACK); // mov ecx, [rbp]
    assert_eq!(raised(&arena, &cpu, &[0x50]), STACK); // push rax
    assert_eq!(raised(&arena, &cpu, &[0x58]), STACK); // pop rax
    cpu.regs.rsp = arena.data() + 64;
    assert_eq!(raised(&arena, &cpu, &[0xff, 0xe0]), GENERAL_PROTECTION); // jmp rax
    assert_eq!(raised(&arena, &cpu, &[0xff, 0xd0]), GENERAL_PROTECTION); // call rax
    arena.store(arena.data() + 64, 8, WILD).unwrap();
    assert_eq!(raised(&arena, &cpu, &[0xc3]), GENERAL_PROTECTION); // ret
    let mut after = cpu.clone();
    assert_eq!(run(&arena, &mut after, &[0x48, 0x8d, 0x08]), Ok(())); // lea rcx, [rax]
    assert_eq!(after.regs.rcx, WILD);
}

#[test]
fn quotients_that_do_not_fit() {
    let arena = Arena::new();
    let mut cpu = at_level(0);
    let forms: [(&[u8], u64, u64, u64); 9] = [
        (&[0x48, 0xf7, 0xf3], 1, 0, 0), // div rbx
        (&[0x48, 0xf7, 0xf3], 0, 7, 7),
        (&[0xf7, 0xf3], 0, 7, 7),
        (&[0xf6, 0xf3], 0x700, 0, 7),
        (&[0x48, 0xf7, 0xfb], 1, 0, 0), // idiv rbx
        (&[0x48, 0xf7, 0xfb], 1 << 63, u64::MAX, u64::MAX),
        (&[0x48, 0xf7, 0xfb], 0, 1 << 63, u64::MAX),
        (&[0xf7, 0xfb], 1 << 31, 0xffff_ffff, 0xffff_ffff),
        (&[0xf6, 0xfb], 0xff80, 0, 0xff),
    ];
    for (bytes, rax, rdx, rbx) in forms {
        (cpu.regs.rax, cpu.regs.rdx, cpu.regs.rbx) = (rax, rdx, rbx);
        assert_eq!(raised(&arena, &cpu, bytes), DIVIDE, "{bytes:02x?}");
    }
}

#[test]
fn the_kernel_s_flags() {
    let arena = Arena::new();
    let mut cpu = at_level(0);
    cpu.regs.rsp = arena.data() + 64;
    arena.store(arena.data() + 64, 8, !flag::TRAP).unwrap();
    assert_eq!(run(&arena, &mut cpu, &[0x9d]), Ok(()));
    // VM, VIF and VIP stay, RF is cleared, and there are no reserved bits.
    assert_eq!(cpu.regs.rflags, 0x24_7ed7);
    assert_eq!(run(&arena, &mut cpu, &[0xfa]), Ok(()));
    assert!(!cpu.flag(flag::INTERRUPT));
    assert_eq!(run(&arena, &mut cpu, &[0xfb]), Ok(()));
    assert!(cpu.flag(flag::INTERRUPT));
    cpu.regs.rflags |= flag::RESUME;
    assert_eq!(run(&arena, &mut cpu, &[0x9c]), Ok(()));
    assert_eq!(arena.load(cpu.regs.rsp, 8).unwrap() & flag::RESUME, 0);

    let mut user = at_level(3);
    assert_eq!(raised(&arena, &user, &[0xfa]), GENERAL_PROTECTION);
    assert_eq!(raised(&arena, &user, &[0xfb]), GENERAL_PROTECTION);
    user.regs.rflags = flag::IOPL;
    assert_eq!(run(&arena, &mut user, &[0xfb]), Ok(()));
    assert!(user.flag(flag::INTERRUPT));
}

/// FS has a base, DS none.
#[test]
fn segments_in_64_bit_mode() {
    let arena = Arena::new();
    let mut cpu = at_level(0);
    cpu.sregs.gs.base = arena.data();
    cpu.sregs.ds.base = 0x1234_5678;
    arena.store(arena.data() + 0x40, 8, 77).unwrap();
    assert_eq!(run(&arena, &mut cpu, &[0x65, 0x48, 0x8b, 0x04, 0x25, 0x40, 0, 0, 0]), Ok(()));
    assert_eq!(cpu.regs.rax, 77);
    cpu.regs.rbx = arena.data() + 0x40;
    assert_eq!(run(&arena, &mut cpu, &[0x48, 0x8b, 0x0b]), Ok(()));
    assert_eq!(cpu.regs.rcx, 77);
    // LEA does not ask for it.
    assert_eq!(run(&arena, &mut cpu, &[0x65, 0x48, 0x8d, 0x13]), Ok(()));
    assert_eq!(cpu.regs.rdx, cpu.regs.rbx);
}

#[test]
fn a_base_is_canonical() {
    let arena = Arena::new();
    let mut cpu = at_level(3);
    cpu.regs.rax = WILD;
    assert_eq!(raised(&arena, &cpu, &[0xf3, 0x48, 0x0f, 0xae, 0xd8]), GENERAL_PROTECTION); // wrgsbase rax
    cpu.regs.rax = 0x7000;
    assert_eq!(run(&arena, &mut cpu, &[0xf3, 0x48, 0x0f, 0xae, 0xd8]), Ok(()));
    assert_eq!(cpu.sregs.gs.base, 0x7000);
    cpu.sregs.cr4 &= !cpu::control::CR4_FSGSBASE;
    assert_eq!(raised(&arena, &cpu, &[0xf3, 0x48, 0x0f, 0xae, 0xd8]), INVALID_OPCODE);
}

#[test]
fn far_jumps_and_system_registers_are_not_known() {
    let arena = Arena::new();
    let mut cpu = at_level(0);
    cpu.regs.rax = arena.data();
    let unknown: [&[u8]; 8] = [
        &[0xff, 0x28],             // jmp far [rax]
        &[0xff, 0x18],             // call far [rax]
        &[0xcb],                   // retf
        &[0x8e, 0xd8],             // mov ds, eax
        &[0x0f, 0x22, 0xd8],       // mov cr3, rax
        &[0x44, 0x0f, 0x20, 0xc0], // mov rax, cr8
        &[0x0f, 0xa0],             // push fs
        &[0xf2, 0x0f, 0x10, 0x00], // movsd xmm0, [rax]
    ];
    for bytes in unknown {
        assert_eq!(run(&arena, &mut cpu, bytes), Err(Trouble::Unknown), "{bytes:02x?}");
        assert_eq!(cpu.regs.rip, 0x1000);
    }
}

/// Traps leave RIP behind the instruction, faults at it.
#[test]
fn traps_and_faults() {
    let arena = Arena::new();
    for (bytes, expected, rip) in [
        (&[0xcc][..], Exception::trap(3), 0x1001),
        (&[0xcd, 0x80], Exception::trap(0x80), 0x1002),
        (&[0xf1], Exception::trap(1), 0x1001),
        (&[0x0f, 0x0b], Exception::fault(6), 0x1000),
    ] {
        let mut cpu = at_level(0);
        assert_eq!(run(&arena, &mut cpu, bytes), Err(expected.into()));
        assert_eq!(cpu.regs.rip, rip);
    }
}
