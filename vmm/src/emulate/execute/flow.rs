//! Near jumps, calls and returns (SDM vol. 2). RIP is behind the instruction when they begin.

use iced_x86::{Code, ConditionCode, Register};

use crate::emulate::exception::Exception;
use crate::emulate::linear::Trouble;
use crate::emulate::step::Step;

use super::flags::condition;
use super::stack::{drop_bytes, peek, push_value};

/// What can be jumped to.
#[inline]
fn checked(step: &Step<'_>, target: u64) -> Result<u64, Trouble> {
    if step.cpu.is_canonical(target) { Ok(target) } else { Err(Exception::protection().into()) }
}

/// Where a near jump or call goes, and how wide that is; far ones are not known.
#[inline]
fn target(step: &Step<'_>) -> Result<(u64, usize), Trouble> {
    let (target, width) = match step.instruction.code() {
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Call_rel32_64 => {
            (step.instruction.near_branch_target(), 8)
        }
        Code::Jmp_rm64 | Code::Call_rm64 => (step.read(0)?, 8),
        Code::Jmp_rel8_32 | Code::Jmp_rel32_32 | Code::Call_rel32_32 => {
            (step.instruction.near_branch_target(), 4)
        }
        Code::Jmp_rm32 | Code::Call_rm32 => (step.read(0)?, 4),
        Code::Jmp_rel8_16 | Code::Jmp_rel16 | Code::Call_rel16 => {
            (step.instruction.near_branch_target(), 2)
        }
        Code::Jmp_rm16 | Code::Call_rm16 => (step.read(0)?, 2),
        _ => return Err(Trouble::Unknown),
    };
    Ok((checked(step, target)?, width))
}

#[inline]
pub(super) fn jmp(step: &mut Step<'_>) -> Result<(), Trouble> {
    step.cpu.regs.rip = target(step)?.0;
    Ok(())
}

/// Jcc.
#[inline]
pub(super) fn jump_if(step: &mut Step<'_>, when: ConditionCode) -> Result<(), Trouble> {
    if condition(step.cpu, when) {
        step.cpu.regs.rip = checked(step, step.instruction.near_branch_target())?;
    }
    Ok(())
}

#[inline]
pub(super) fn call(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (target, width) = target(step)?;
    push_value(step, width, step.cpu.regs.rip)?;
    step.cpu.regs.rip = target;
    Ok(())
}

/// Near, with or without an immediate.
#[inline]
pub(super) fn ret(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (width, more) = match step.instruction.code() {
        Code::Retnq => (8, 0),
        Code::Retnq_imm16 => (8, step.instruction.immediate16()),
        Code::Retnd => (4, 0),
        Code::Retnd_imm16 => (4, step.instruction.immediate16()),
        Code::Retnw => (2, 0),
        Code::Retnw_imm16 => (2, step.instruction.immediate16()),
        _ => return Err(Trouble::Unknown),
    };
    let target = peek(step, width)?;
    let target = checked(step, target)?;
    drop_bytes(step, width as u64 + u64::from(more))?;
    step.cpu.regs.rip = target;
    Ok(())
}

/// What LOOP counts in.
fn counter(step: &Step<'_>) -> Register {
    match step.instruction.code() {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => Register::CX,
        Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX => Register::RCX,
        _ => Register::ECX,
    }
}

/// LOOP, LOOPE and LOOPNE.
pub(super) fn count(step: &mut Step<'_>, when: ConditionCode) -> Result<(), Trouble> {
    let counter = counter(step);
    let left = step.cpu.get(counter).ok_or(Trouble::Unknown)?.wrapping_sub(1);
    let mask = u64::MAX >> (64 - 8 * counter.size());
    let taken = left & mask != 0 && condition(step.cpu, when);
    let target = checked(step, step.instruction.near_branch_target())?;
    step.cpu.set(counter, left).ok_or(Trouble::Unknown)?;
    if taken {
        step.cpu.regs.rip = target;
    }
    Ok(())
}

/// JCXZ, JECXZ and JRCXZ.
pub(super) fn jump_if_none(step: &mut Step<'_>, counter: Register) -> Result<(), Trouble> {
    if step.cpu.get(counter) == Some(0) {
        step.cpu.regs.rip = checked(step, step.instruction.near_branch_target())?;
    }
    Ok(())
}
