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
    pub(in crate::emulate) const DIRECTION: u64 = 1 << 10;
    pub(in crate::emulate) const OVERFLOW: u64 = 1 << 11;
    pub(in crate::emulate) const IOPL: u64 = 3 << 12;
    pub(in crate::emulate) const NESTED: u64 = 1 << 14;
    pub(in crate::emulate) const RESUME: u64 = 1 << 16;
    pub(in crate::emulate) const VIRTUAL_8086: u64 = 1 << 17;
    pub(in crate::emulate) const ALIGNMENT: u64 = 1 << 18;
    pub(in crate::emulate) const IDENTIFICATION: u64 = 1 << 21;
    /// The six that arithmetic sets.
    pub(in crate::emulate) const STATUS: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;
}

/// Bits of CR0, CR4 and IA32_EFER (SDM vol. 3A, 2.5 and 2.2.1).
pub(super) mod control {
    pub(in crate::emulate) const CR0_MP: u64 = 1 << 1;
    pub(in crate::emulate) const CR0_EM: u64 = 1 << 2;
    pub(in crate::emulate) const CR0_TS: u64 = 1 << 3;
    pub(in crate::emulate) const CR0_NE: u64 = 1 << 5;
    pub(in crate::emulate) const CR0_WP: u64 = 1 << 16;
    pub(in crate::emulate) const CR0_PG: u64 = 1 << 31;
    pub(in crate::emulate) const CR4_PSE: u64 = 1 << 4;
    pub(in crate::emulate) const CR4_PAE: u64 = 1 << 5;
    pub(in crate::emulate) const CR4_PGE: u64 = 1 << 7;
    pub(in crate::emulate) const CR4_OSFXSR: u64 = 1 << 9;
    pub(in crate::emulate) const CR4_LA57: u64 = 1 << 12;
    pub(in crate::emulate) const CR4_FSGSBASE: u64 = 1 << 16;
    pub(in crate::emulate) const CR4_PCIDE: u64 = 1 << 17;
    pub(in crate::emulate) const CR4_OSXSAVE: u64 = 1 << 18;
    pub(in crate::emulate) const CR4_SMEP: u64 = 1 << 20;
    pub(in crate::emulate) const CR4_SMAP: u64 = 1 << 21;
    pub(in crate::emulate) const EFER_LMA: u64 = 1 << 10;
    pub(in crate::emulate) const EFER_NXE: u64 = 1 << 11;
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

/// What is asked of a vCPU beyond those: rarely, and each time by a call of its own. What one does not tell is an error.
pub(super) trait Beyond {
    /// x87, SSE and extended state, in the standard format.
    fn xsave(&self) -> Result<Box<kvm_xsave>, Trouble> {
        Err(Trouble::State("it has no extended state"))
    }
    /// Sets that.
    fn set_xsave(&self, _: &kvm_xsave) -> Result<(), Trouble> {
        Err(Trouble::State("it has no extended state"))
    }
    /// XCR0.
    fn xcr0(&self) -> Result<u64, Trouble> {
        Err(Trouble::State("it has no XCR0"))
    }
    /// Sets XCR0.
    fn set_xcr0(&self, _: u64) -> Result<(), Trouble> {
        Err(Trouble::State("it has no XCR0"))
    }
    /// What CPUID says.
    fn cpuid(&self, _leaf: u32, _subleaf: u32) -> Result<[u32; 4], Trouble> {
        Err(Trouble::State("it has no CPUID"))
    }
    /// The time stamp counter.
    fn tsc(&self) -> Result<u64, Trouble> {
        Err(Trouble::State("it has no time stamp counter"))
    }
    /// A model-specific register.
    fn msr(&self, _index: u32) -> Result<u64, Trouble> {
        Err(Trouble::State("it has no model-specific registers"))
    }
    /// Sets a model-specific register, as the guest would.
    fn set_msr(&self, _index: u32, _value: u64) -> Result<(), Trouble> {
        Err(Trouble::State("it has no model-specific registers"))
    }
    /// Sets IA32_KERNEL_GS_BASE; what it was.
    fn exchange_kernel_gs(&self, _value: u64) -> Result<u64, Trouble> {
        Err(Trouble::State("it has no IA32_KERNEL_GS_BASE"))
    }
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

    /// Whether `address` is one that 64-bit code can use (SDM vol. 1, 3.3.7.1); outside of it there is no such check.
    #[inline]
    pub(super) fn is_canonical(&self, address: u64) -> bool {
        let bits = if self.sregs.cr4 & control::CR4_LA57 != 0 { 57 } else { 48 };
        let sign = ((address as i64) << (64 - bits)) >> (64 - bits);
        sign as u64 == address || self.bitness() != 64
    }

    /// A flag of RFLAGS.
    #[inline]
    pub(super) fn flag(&self, flag: u64) -> bool {
        self.regs.rflags & flag != 0
    }

    /// Sets or clears flags.
    pub(super) fn set_flag(&mut self, flag: u64, on: bool) {
        self.regs.rflags = if on { self.regs.rflags | flag } else { self.regs.rflags & !flag };
    }

    /// What a segment adds to an address; `None` if it is none.
    #[inline]
    pub(super) fn segment_base(&self, register: Register) -> Option<u64> {
        // FS and GS alone have a base in 64-bit mode.
        if self.bitness() == 64 && !matches!(register, Register::FS | Register::GS) {
            return Some(0);
        }
        Some(self.segment(register)?.base)
    }

    /// A segment register's selector.
    pub(super) fn selector(&self, register: Register) -> Option<u16> {
        self.segment(register).map(|segment| segment.selector)
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
    #[inline]
    pub(super) fn get(&self, register: Register) -> Option<u64> {
        let (part, index) = part(register)?;
        let full = *self.whole(index);
        Some(match part {
            Part::Low8 => full & 0xff,
            Part::High8 => full >> 8 & 0xff,
            Part::Low16 => full & 0xffff,
            Part::Low32 => full & 0xffff_ffff,
            Part::All => full,
        })
    }

    /// Sets a general register: 32 bits clear the upper half, 8 and 16 leave the rest (SDM vol. 1, 3.4.1.1).
    #[inline]
    pub(super) fn set(&mut self, register: Register, value: u64) -> Option<()> {
        let (part, index) = part(register)?;
        let full = self.whole_mut(index);
        *full = match part {
            Part::Low8 => *full & !0xff | value & 0xff,
            Part::High8 => *full & !0xff00 | (value & 0xff) << 8,
            Part::Low16 => *full & !0xffff | value & 0xffff,
            Part::Low32 => value & 0xffff_ffff,
            Part::All => value,
        };
        Some(())
    }

    /// The register that instructions encode as `index`.
    #[inline]
    fn whole(&self, index: u32) -> &u64 {
        let regs = &self.regs;
        match index & 15 {
            0 => &regs.rax,
            1 => &regs.rcx,
            2 => &regs.rdx,
            3 => &regs.rbx,
            4 => &regs.rsp,
            5 => &regs.rbp,
            6 => &regs.rsi,
            7 => &regs.rdi,
            8 => &regs.r8,
            9 => &regs.r9,
            10 => &regs.r10,
            11 => &regs.r11,
            12 => &regs.r12,
            13 => &regs.r13,
            14 => &regs.r14,
            _ => &regs.r15,
        }
    }

    #[inline]
    fn whole_mut(&mut self, index: u32) -> &mut u64 {
        let regs = &mut self.regs;
        match index & 15 {
            0 => &mut regs.rax,
            1 => &mut regs.rcx,
            2 => &mut regs.rdx,
            3 => &mut regs.rbx,
            4 => &mut regs.rsp,
            5 => &mut regs.rbp,
            6 => &mut regs.rsi,
            7 => &mut regs.rdi,
            8 => &mut regs.r8,
            9 => &mut regs.r9,
            10 => &mut regs.r10,
            11 => &mut regs.r11,
            12 => &mut regs.r12,
            13 => &mut regs.r13,
            14 => &mut regs.r14,
            _ => &mut regs.r15,
        }
    }
}

/// Which part of a general register a name stands for.
#[derive(Clone, Copy)]
enum Part {
    Low8,
    High8,
    Low16,
    Low32,
    All,
}

/// What `register` names, and of which one; the decoder's list has each width in the order of the encoding.
#[inline]
fn part(register: Register) -> Option<(Part, u32)> {
    const AL: u32 = Register::AL as u32;
    const AH: u32 = Register::AH as u32;
    const SPL: u32 = Register::SPL as u32;
    const AX: u32 = Register::AX as u32;
    const EAX: u32 = Register::EAX as u32;
    const RAX: u32 = Register::RAX as u32;
    const R15: u32 = Register::R15 as u32;
    let at = register as u32;
    Some(match at {
        RAX..=R15 => (Part::All, at - RAX),
        EAX..RAX => (Part::Low32, at - EAX),
        AX..EAX => (Part::Low16, at - AX),
        // Behind the four old high bytes come SPL to R15L.
        SPL..AX => (Part::Low8, at - SPL + 4),
        AH..SPL => (Part::High8, at - AH),
        AL..AH => (Part::Low8, at - AL),
        _ => return None,
    })
}
