//! What only a kernel does, and a few that tell a program where it is.

use iced_x86::Register;

use crate::emulate::cpu::{control, flag};
use crate::emulate::exception::Exception;
use crate::emulate::linear::{Access, Trouble};
use crate::emulate::step::Step;

const MSR_TSC_AUX: u32 = 0xc000_0103;
/// The time at which the local APIC's timer rings, and the end of an interrupt in x2APIC mode (SDM vol. 3A, 11.5.4.1 and
/// table 11-6): what every tick writes.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC_EOI: u32 = 0x80b;

/// CLAC and STAC.
pub(super) fn access_check(step: &mut Step<'_>, lifted: bool) -> Result<(), Trouble> {
    if step.cpu.cpl() != 0 || step.cpu.sregs.cr4 & control::CR4_SMAP == 0 {
        return Err(Exception::invalid_opcode().into());
    }
    step.cpu.set_flag(flag::ALIGNMENT, lifted);
    Ok(())
}

/// A segment whose base 64-bit code can set.
#[derive(Clone, Copy)]
pub(super) enum Base {
    Fs,
    Gs,
}

fn base<'s>(step: &'s mut Step<'_>, base: Base) -> Result<&'s mut u64, Trouble> {
    let cpu = &mut *step.cpu;
    if cpu.bitness() != 64 || cpu.sregs.cr4 & control::CR4_FSGSBASE == 0 {
        return Err(Exception::invalid_opcode().into());
    }
    Ok(match base {
        Base::Fs => &mut cpu.sregs.fs.base,
        Base::Gs => &mut cpu.sregs.gs.base,
    })
}

pub(super) fn read_base(step: &mut Step<'_>, which: Base) -> Result<(), Trouble> {
    let value = *base(step, which)?;
    step.write(0, value)
}

pub(super) fn write_base(step: &mut Step<'_>, which: Base) -> Result<(), Trouble> {
    let value = step.read(0)?;
    base(step, which)?;
    if !step.cpu.is_canonical(value) {
        return Err(Exception::protection().into());
    }
    *base(step, which)? = value;
    step.cpu.special_changed = true;
    Ok(())
}

pub(super) fn swapgs(step: &mut Step<'_>) -> Result<(), Trouble> {
    if step.cpu.bitness() != 64 {
        return Err(Exception::invalid_opcode().into());
    }
    if step.cpu.cpl() != 0 {
        return Err(Exception::protection().into());
    }
    let kernel = step.beyond.exchange_kernel_gs(step.cpu.sregs.gs.base)?;
    step.cpu.sregs.gs.base = kernel;
    step.cpu.special_changed = true;
    Ok(())
}

pub(super) fn rdtscp(step: &mut Step<'_>) -> Result<(), Trouble> {
    let now = step.beyond.tsc()?;
    let aux = step.beyond.msr(MSR_TSC_AUX)?;
    step.cpu.regs.rax = now & 0xffff_ffff;
    step.cpu.regs.rdx = now >> 32;
    step.cpu.regs.rcx = aux & 0xffff_ffff;
    Ok(())
}

/// To a register of which KVM is told as well as the guest tells it. Every other is KVM's, with what it checks and changes.
pub(super) fn wrmsr(step: &mut Step<'_>) -> Result<(), Trouble> {
    let regs = &step.cpu.regs;
    let (index, value) = (regs.rcx as u32, regs.rdx << 32 | regs.rax & 0xffff_ffff);
    if step.cpu.cpl() != 0 || !matches!(index, MSR_TSC_DEADLINE | MSR_X2APIC_EOI) {
        return Err(Trouble::Unknown);
    }
    // What KVM does not take from here it may take from the guest, or it raises the exception.
    step.beyond.set_msr(index, value).map_err(|_| Trouble::Unknown)
}

/// CR4.TSD, which would deny it to ring 3, is nothing to ring 0.
pub(super) fn rdtsc(step: &mut Step<'_>) -> Result<(), Trouble> {
    if step.cpu.cpl() != 0 {
        return Err(Trouble::Unknown);
    }
    let now = step.beyond.tsc()?;
    step.cpu.regs.rax = now & 0xffff_ffff;
    step.cpu.regs.rdx = now >> 32;
    Ok(())
}

pub(super) fn cpuid(step: &mut Step<'_>) -> Result<(), Trouble> {
    let regs = &mut step.cpu.regs;
    let [eax, ebx, ecx, edx] = step.beyond.cpuid(regs.rax as u32, regs.rcx as u32)?;
    (regs.rax, regs.rbx) = (eax.into(), ebx.into());
    (regs.rcx, regs.rdx) = (ecx.into(), edx.into());
    Ok(())
}

/// MOV from a segment register, zero-extended where it goes to a register, and from CR0, CR2, CR3 or CR4. CR8 is the local
/// APIC's; what is moved into any of them is more than a move.
pub(super) fn mov(step: &mut Step<'_>) -> Result<(), Trouble> {
    let cpu = &*step.cpu;
    let sregs = &cpu.sregs;
    let from = step.instruction.op_register(1);
    let value = match from {
        Register::CR0 => sregs.cr0,
        Register::CR2 => sregs.cr2,
        Register::CR3 => sregs.cr3,
        Register::CR4 => sregs.cr4,
        _ => cpu.selector(from).ok_or(Trouble::Unknown)?.into(),
    };
    if from.is_cr() && cpu.cpl() != 0 {
        return Err(Exception::protection().into());
    }
    step.write(0, value)
}

pub(super) fn rdpid(step: &mut Step<'_>) -> Result<(), Trouble> {
    let aux = step.beyond.msr(MSR_TSC_AUX)? & 0xffff_ffff;
    step.write(0, aux)
}

/// More is dropped than was asked for, which INVPCID allows: KVM forgets all of a vCPU's translations when CR3 and CR4 are
/// set again (SDM vol. 2A, INVPCID; a change of PCIDE or PGE is what makes it do so).
pub(super) fn invpcid(step: &mut Step<'_>) -> Result<(), Trouble> {
    if step.cpu.cpl() != 0 {
        return Err(Exception::protection().into());
    }
    let kind = step.read(0)?;
    let mut descriptor = [0; 16];
    step.memory.read(step.address()?, &mut descriptor, Access::Read)?;
    let pcid = u64::from_le_bytes(descriptor[..8].try_into().expect("eight bytes"));
    let needs_pcide = kind <= 1 && pcid != 0 && step.cpu.sregs.cr4 & control::CR4_PCIDE == 0;
    if kind > 3 || pcid >> 12 != 0 || needs_pcide {
        return Err(Exception::protection().into());
    }
    step.cpu.forget_translations = true;
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT and CLWB: caches are the host's, and coherent; the address must be one that can be read.
pub(super) fn clean_line(step: &Step<'_>) -> Result<(), Trouble> {
    step.memory.with(step.address()?, 1, Access::Read, &mut |_| ())
}
