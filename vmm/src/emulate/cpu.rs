//! The registers of a vCPU, for as long as one instruction is carried out.

use iced_x86::Register;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_xsave};

use super::linear::Trouble;

/// Flags of RFLAGS (SDM vol. 1, 3.4.3).
pub(super) mod flag {
    pub(in crate::emulate) const CARRY: u64 = 1 << 0;
    pub(in crate::emulate) const PARITY: u64 = 1 << 2;
    pub(in crate::emulate) const ADJUST: u64 = 1 << 4;
    pub(in crate::emulate) const ZERO: u64 = 1 << 6;
    pub(in crate::emulate) const SIGN: u64 = 1 << 7;
    pub(in crate::emulate) const TRAP: u64 = 1 << 8;
    pub(in crate::emulate) const INTERRUPT: u64 = 1 << 9;
    pub(in crate::emulate) const OVERFLOW: u64 = 1 << 11;
    pub(in crate::emulate) const RESUME: u64 = 1 << 16;
    pub(in crate::emulate) const ALIGNMENT: u64 = 1 << 18;
    /// The six that arithmetic sets.
    pub(in crate::emulate) const STATUS: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;
}

/// Bits of CR0 and CR4 (SDM vol. 3A, 2.5).
pub(super) mod control {
    pub(in crate::emulate) const CR0_MP: u64 = 1 << 1;
    pub(in crate::emulate) const CR0_EM: u64 = 1 << 2;
    pub(in crate::emulate) const CR0_TS: u64 = 1 << 3;
    pub(in crate::emulate) const CR0_NE: u64 = 1 << 5;
    pub(in crate::emulate) const CR4_OSFXSR: u64 = 1 << 9;
    pub(in crate::emulate) const CR4_FSGSBASE: u64 = 1 << 16;
    pub(in crate::emulate) const CR4_OSXSAVE: u64 = 1 << 18;
    pub(in crate::emulate) const CR4_SMAP: u64 = 1 << 21;
    pub(in crate::emulate) const EFER_LMA: u64 = 1 << 10;
}

/// General, segment and control registers.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    /// Whether `sregs` has been changed.
    pub(super) special_changed: bool,
    /// Whether all translations have to be forgotten.
    pub(super) forget_translations: bool,
}

/// What is asked of a vCPU beyond those: rarely, and each time by a call of its own.
pub(super) trait Beyond {
    /// x87, SSE and extended state, in the standard format.
    fn xsave(&self) -> Result<Box<kvm_xsave>, Trouble>;
    /// Sets that.
    fn set_xsave(&self, state: &kvm_xsave) -> Result<(), Trouble>;
    /// XCR0.
    fn xcr0(&self) -> Result<u64, Trouble>;
    /// Sets XCR0.
    fn set_xcr0(&self, value: u64) -> Result<(), Trouble>;
    /// A model-specific register.
    fn msr(&self, index: u32) -> Result<u64, Trouble>;
    /// Sets one.
    fn set_msr(&self, index: u32, value: u64) -> Result<(), Trouble>;
}

impl Cpu {
    pub(super) fn new(regs: kvm_regs, sregs: kvm_sregs) -> Cpu {
        Cpu { regs, sregs, special_changed: false, forget_translations: false }
    }

    /// The privilege level.
    pub(super) fn cpl(&self) -> u8 {
        self.sregs.ss.dpl
    }

    /// How wide code is here, in bits: 64, 32 or 16.
    pub(super) fn bitness(&self) -> u32 {
        match &self.sregs.cs {
            cs if self.is_long() && cs.l != 0 => 64,
            cs if cs.db != 0 => 32,
            _ => 16,
        }
    }

    fn is_long(&self) -> bool {
        self.sregs.efer & control::EFER_LMA != 0
    }

    /// A flag of RFLAGS.
    pub(super) fn flag(&self, flag: u64) -> bool {
        self.regs.rflags & flag != 0
    }

    /// Sets or clears flags.
    pub(super) fn set_flag(&mut self, flag: u64, on: bool) {
        self.regs.rflags = if on { self.regs.rflags | flag } else { self.regs.rflags & !flag };
    }

    /// What an address is built from: a general register, or a segment's base.
    pub(super) fn address_part(&self, register: Register) -> Option<u64> {
        if let Some(segment) = self.segment(register) {
            // FS and GS alone have a base in 64-bit mode.
            let flat = self.bitness() == 64 && !matches!(register, Register::FS | Register::GS);
            return Some(if flat { 0 } else { segment.base });
        }
        self.get(register)
    }

    fn segment(&self, register: Register) -> Option<&kvm_segment> {
        Some(match register {
            Register::CS => &self.sregs.cs,
            Register::DS => &self.sregs.ds,
            Register::ES => &self.sregs.es,
            Register::FS => &self.sregs.fs,
            Register::GS => &self.sregs.gs,
            Register::SS => &self.sregs.ss,
            _ => return None,
        })
    }

    /// A general register of any width; nothing if it is none.
    pub(super) fn get(&self, register: Register) -> Option<u64> {
        if !register.is_gpr() {
            return None;
        }
        let full = *self.whole(register)?;
        Some(match register.size() {
            1 if is_high_byte(register) => full >> 8 & 0xff,
            1 => full & 0xff,
            2 => full & 0xffff,
            4 => full & 0xffff_ffff,
            _ => full,
        })
    }

    /// Sets a general register: 32 bits clear the upper half, 8 and 16 leave the rest (SDM vol. 1, 3.4.1.1).
    pub(super) fn set(&mut self, register: Register, value: u64) -> Option<()> {
        let high = is_high_byte(register);
        let size = register.size();
        let full = self.whole_mut(register)?;
        *full = match size {
            1 if high => *full & !0xff00 | (value & 0xff) << 8,
            1 => *full & !0xff | value & 0xff,
            2 => *full & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
        Some(())
    }

    fn whole(&self, register: Register) -> Option<&u64> {
        let regs = &self.regs;
        Some(match register.full_register() {
            Register::RAX => &regs.rax,
            Register::RBX => &regs.rbx,
            Register::RCX => &regs.rcx,
            Register::RDX => &regs.rdx,
            Register::RSI => &regs.rsi,
            Register::RDI => &regs.rdi,
            Register::RBP => &regs.rbp,
            Register::RSP => &regs.rsp,
            Register::R8 => &regs.r8,
            Register::R9 => &regs.r9,
            Register::R10 => &regs.r10,
            Register::R11 => &regs.r11,
            Register::R12 => &regs.r12,
            Register::R13 => &regs.r13,
            Register::R14 => &regs.r14,
            Register::R15 => &regs.r15,
            _ => return None,
        })
    }

    fn whole_mut(&mut self, register: Register) -> Option<&mut u64> {
        let regs = &mut self.regs;
        Some(match register.full_register() {
            Register::RAX => &mut regs.rax,
            Register::RBX => &mut regs.rbx,
            Register::RCX => &mut regs.rcx,
            Register::RDX => &mut regs.rdx,
            Register::RSI => &mut regs.rsi,
            Register::RDI => &mut regs.rdi,
            Register::RBP => &mut regs.rbp,
            Register::RSP => &mut regs.rsp,
            Register::R8 => &mut regs.r8,
            Register::R9 => &mut regs.r9,
            Register::R10 => &mut regs.r10,
            Register::R11 => &mut regs.r11,
            Register::R12 => &mut regs.r12,
            Register::R13 => &mut regs.r13,
            Register::R14 => &mut regs.r14,
            Register::R15 => &mut regs.r15,
            _ => return None,
        })
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}
