//! What works on the stack (SDM vol. 2; vol. 1, 6.2), RFLAGS on it included.

use iced_x86::{Code, OpKind, Register};

use crate::emulate::cpu::flag;
use crate::emulate::exception::Exception;
use crate::emulate::linear::Trouble;
use crate::emulate::step::{Step, cut};

/// What POPF can change at any privilege level. VM, VIF and VIP stay, and RF is cleared.
const ANYBODYS: u64 = flag::STATUS
    | flag::TRAP
    | flag::DIRECTION
    | flag::NESTED
    | flag::ALIGNMENT
    | flag::IDENTIFICATION;

/// RSP, ESP or SP: how wide the stack is.
#[inline]
fn pointer(step: &Step<'_>) -> Register {
    match step.cpu.bitness() {
        64 => Register::RSP,
        _ if step.cpu.sregs.ss.db != 0 => Register::ESP,
        _ => Register::SP,
    }
}

/// Stores `width` bytes of `value` below the stack pointer, and moves it there: nothing is changed when that faults.
#[inline]
pub(super) fn push_value(step: &mut Step<'_>, width: usize, value: u64) -> Result<(), Trouble> {
    let pointer = pointer(step);
    let at = step.cpu.get(pointer).ok_or(Trouble::Unknown)?.wrapping_sub(width as u64);
    let address = step.linear(Register::SS, cut(at, pointer.size()))?;
    step.memory.store(address, width, value)?;
    step.cpu.set(pointer, at).ok_or(Trouble::Unknown)
}

/// The `width` bytes at the top of the stack, which stay there.
#[inline]
pub(super) fn peek(step: &Step<'_>, width: usize) -> Result<u64, Trouble> {
    let at = step.cpu.get(pointer(step)).ok_or(Trouble::Unknown)?;
    step.memory.load(step.linear(Register::SS, at)?, width)
}

/// Drops `bytes` bytes.
#[inline]
pub(super) fn drop_bytes(step: &mut Step<'_>, bytes: u64) -> Result<(), Trouble> {
    let pointer = pointer(step);
    let at = step.cpu.get(pointer).ok_or(Trouble::Unknown)?;
    step.cpu.set(pointer, at.wrapping_add(bytes)).ok_or(Trouble::Unknown)
}

/// How many bytes the instruction moves the stack pointer by.
#[inline]
fn moved(step: &Step<'_>) -> usize {
    step.instruction.stack_pointer_increment().unsigned_abs() as usize
}

#[inline]
pub(super) fn push(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = step.read(0)?;
    push_value(step, moved(step), value)
}

#[inline]
pub(super) fn pop(step: &mut Step<'_>) -> Result<(), Trouble> {
    let width = moved(step);
    if step.instruction.op_kind(0) == OpKind::Register {
        let register = step.instruction.op_register(0);
        step.cpu.get(register).ok_or(Trouble::Unknown)?;
        let value = peek(step, width)?;
        drop_bytes(step, width as u64)?;
        return step.write(0, value);
    }
    let value = peek(step, width)?;
    let before = step.cpu.regs.rsp;
    drop_bytes(step, width as u64)?;
    // An address that is built from RSP is built from the new one.
    let stored = step.write(0, value);
    if stored.is_err() {
        step.cpu.regs.rsp = before;
    }
    stored
}

pub(super) fn leave(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (width, frame) = match step.instruction.code() {
        Code::Leavew => (2, Register::BP),
        Code::Leaved => (4, Register::EBP),
        _ => (8, Register::RBP),
    };
    let pointer = pointer(step);
    let at = cut(step.cpu.regs.rbp, pointer.size());
    let value = step.memory.load(step.linear(Register::SS, at)?, width)?;
    step.cpu.set(frame, value).ok_or(Trouble::Unknown)?;
    step.cpu.set(pointer, at.wrapping_add(width as u64)).ok_or(Trouble::Unknown)
}

/// VM and RF are not shown.
pub(super) fn pushf(step: &mut Step<'_>) -> Result<(), Trouble> {
    let flags = step.cpu.regs.rflags & !(flag::VIRTUAL_8086 | flag::RESUME);
    push_value(step, moved(step), flags)
}

pub(super) fn popf(step: &mut Step<'_>) -> Result<(), Trouble> {
    let width = moved(step);
    let value = peek(step, width)?;
    let mut mask = ANYBODYS;
    let cpl = step.cpu.cpl();
    mask |= if cpl == 0 { flag::IOPL } else { 0 };
    mask |= if cpl <= io_level(step) { flag::INTERRUPT } else { 0 };
    let mask = cut(mask, width);
    drop_bytes(step, width as u64)?;
    let flags = step.cpu.regs.rflags & !(mask | flag::RESUME);
    step.cpu.regs.rflags = flags | value & mask;
    Ok(())
}

fn io_level(step: &Step<'_>) -> u8 {
    ((step.cpu.regs.rflags & flag::IOPL) >> flag::IOPL.trailing_zeros()) as u8
}

/// CLI and STI. What keeps interrupts back for one more instruction is not done here.
pub(super) fn interrupts(step: &mut Step<'_>, on: bool) -> Result<(), Trouble> {
    if step.cpu.cpl() > io_level(step) {
        return Err(Exception::protection().into());
    }
    step.cpu.set_flag(flag::INTERRUPT, on);
    Ok(())
}
