//! Moving, extending and exchanging values (SDM vol. 2), and single flags.

use iced_x86::{ConditionCode, Register};

use crate::emulate::cpu::flag;
use crate::emulate::linear::Trouble;
use crate::emulate::step::{Step, cut, extend};

use super::flags::{condition, replace};

/// What LAHF and SAHF move: SF, ZF, AF, PF and CF.
const LOW_FLAGS: u64 = flag::STATUS & !flag::OVERFLOW;
/// Bit 1 of RFLAGS, which is always set.
const ALWAYS: u64 = 1 << 1;

/// MOV and MOVNTI, whose hint nothing here can use. Segment, control and debug registers are not known to `read` and `write`.
#[inline]
pub(super) fn mov(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = step.read(1)?;
    step.write(0, value)
}

#[inline]
pub(super) fn movzx(step: &mut Step<'_>) -> Result<(), Trouble> {
    mov(step)
}

/// MOVSX and MOVSXD.
#[inline]
pub(super) fn movsx(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = extend(step.read(1)?, step.width(1));
    step.write(0, value)
}

/// No memory is touched: any address will do.
#[inline]
pub(super) fn lea(step: &mut Step<'_>) -> Result<(), Trouble> {
    let offset = step.offset(0)?;
    step.write(0, offset)
}

/// With memory it is locked, whatever the prefix.
pub(super) fn xchg(step: &mut Step<'_>) -> Result<(), Trouble> {
    let memory = (0..2).find(|&operand| step.is_memory(operand));
    let Some(memory) = memory else {
        let (first, second) = (step.read(0)?, step.read(1)?);
        step.write(0, second)?;
        return step.write(1, first);
    };
    let register = 1 - memory;
    let new = step.read(register)?;
    let old = step.memory.exchange(step.address()?, step.width(register), &mut |_| new)?;
    step.write(register, old)
}

/// The source is read whether it is used or not, and the upper half cleared by a move of 32 bits that is not made.
#[inline]
pub(super) fn cmov(step: &mut Step<'_>, when: ConditionCode) -> Result<(), Trouble> {
    let value = step.read(1)?;
    let value = if condition(step.cpu, when) { value } else { step.read(0)? };
    step.write(0, value)
}

#[inline]
pub(super) fn set(step: &mut Step<'_>, when: ConditionCode) -> Result<(), Trouble> {
    let value = condition(step.cpu, when);
    step.write(0, value.into())
}

/// With 16 bits the result is undefined; processors give zero.
pub(super) fn bswap(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = step.read(0)?;
    let swapped = match step.width(0) {
        2 => 0,
        4 => (value as u32).swap_bytes().into(),
        _ => value.swap_bytes(),
    };
    step.write(0, swapped)
}

pub(super) fn lahf(step: &mut Step<'_>) {
    let flags = step.cpu.regs.rflags & LOW_FLAGS | ALWAYS;
    step.cpu.set(Register::AH, flags);
}

pub(super) fn sahf(step: &mut Step<'_>) {
    let flags = step.cpu.regs.rax >> 8 & LOW_FLAGS;
    replace(step.cpu, LOW_FLAGS, flags);
}

/// CBW, CWDE and CDQE: to a register of `width` bytes from its lower half.
#[inline]
pub(super) fn widen(step: &mut Step<'_>, to: Register) {
    let value = extend(step.cpu.regs.rax, to.size() / 2);
    step.cpu.set(to, value);
}

/// CWD, CDQ and CQO: `high` gets the sign of RAX's part that is as wide.
#[inline]
pub(super) fn spread(step: &mut Step<'_>, high: Register) {
    let value = extend(step.cpu.regs.rax, high.size());
    step.cpu.set(high, cut((value as i64 >> 63) as u64, high.size()));
}

/// CLC, STC, CLD and STD.
#[inline]
pub(super) fn set_flag(step: &mut Step<'_>, flag: u64, on: bool) {
    step.cpu.set_flag(flag, on);
}

#[inline]
pub(super) fn cmc(step: &mut Step<'_>) {
    step.cpu.regs.rflags ^= flag::CARRY;
}
