//! Software interrupts (SDM vol. 2A, INT n/INTO/INT3/INT1) and undefined instructions.

use crate::emulate::cpu::flag;
use crate::emulate::exception::{BREAKPOINT, DEBUG, Exception};
use crate::emulate::linear::Trouble;
use crate::emulate::step::Step;

pub(super) fn int3() -> Result<(), Trouble> {
    Err(Exception::trap(BREAKPOINT).into())
}

pub(super) fn int1() -> Result<(), Trouble> {
    Err(Exception::trap(DEBUG).into())
}

pub(super) fn int(step: &Step<'_>) -> Result<(), Trouble> {
    Err(Exception::trap(step.instruction.immediate8()).into())
}

pub(super) fn undefined() -> Result<(), Trouble> {
    Err(Exception::invalid_opcode().into())
}

/// Flags that IRET restores in ring 0: all but those of virtual-8086 mode, and the bits that are fixed.
const RESTORED: u64 = 0x25_7fd5;

/// IRETQ from ring 0 to ring 0 with the segments that are there already: the end of a kernel's own exceptions, and its way to
/// serialise. Every other return is KVM's.
pub(super) fn iretq(step: &mut Step<'_>) -> Result<(), Trouble> {
    let cpu = &*step.cpu;
    if cpu.cpl() != 0 || cpu.flag(flag::NESTED) {
        return Err(Trouble::Unknown);
    }
    let word = |index: u64| step.memory.load(cpu.regs.rsp.wrapping_add(8 * index), 8);
    let [rip, cs, flags, rsp, ss] = [word(0)?, word(1)?, word(2)?, word(3)?, word(4)?];
    let (is_cs, is_ss) = (cpu.sregs.cs.selector, cpu.sregs.ss.selector);
    if cs as u16 != is_cs || ss as u16 != is_ss || !cpu.is_canonical(rip) {
        return Err(Trouble::Unknown);
    }
    let regs = &mut step.cpu.regs;
    (regs.rip, regs.rsp) = (rip, rsp);
    regs.rflags = regs.rflags & !RESTORED | flags & RESTORED;
    Ok(())
}
