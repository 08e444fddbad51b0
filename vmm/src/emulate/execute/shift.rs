//! Shifts and rotations (SDM vol. 2). Counts are masked, and a count of zero changes no flag.

use crate::emulate::cpu::flag;
use crate::emulate::linear::Trouble;
use crate::emulate::step::{Step, cut, extend};

use super::flags::{of_result, only, replace, top};

/// What shifts and rotations have in common.
#[derive(Clone, Copy)]
struct Shift {
    width: usize,
    bits: u32,
    count: u32,
}

fn shift(step: &Step<'_>, operand: u32) -> Result<Shift, Trouble> {
    let width = step.width(0);
    let mask = if width == 8 { 63 } else { 31 };
    Ok(Shift { width, bits: 8 * width as u32, count: step.read(operand)? as u32 & mask })
}

impl Shift {
    /// Bit `count - 1`, and those above, of what is as wide as the operand.
    fn bit(self, value: u64, at: u32) -> bool {
        at < 64 && value >> at & 1 != 0
    }
}

/// Whether `value` changes its sign from bit `bits - 1` to the one below.
fn top_two_differ(value: u64, width: usize) -> bool {
    top(value ^ value << 1, width)
}

/// SF, ZF, PF of the result, with CF and OF; AF is undefined, and cleared.
#[inline]
fn shifted(step: &mut Step<'_>, result: u64, width: usize, carry: bool, overflow: bool) {
    let flags = of_result(result, width);
    let flags = flags | only(carry, flag::CARRY) | only(overflow, flag::OVERFLOW);
    replace(step.cpu, flag::STATUS, flags);
}

/// SHL and SAL.
#[inline]
pub(super) fn shl(step: &mut Step<'_>) -> Result<(), Trouble> {
    let by = shift(step, 1)?;
    let change = |old: u64| cut(old << by.count, by.width);
    let old = step.modify(change)?;
    if by.count != 0 {
        let result = change(old);
        let carry = by.count <= by.bits && by.bit(old, by.bits - by.count);
        shifted(step, result, by.width, carry, top(result, by.width) != carry);
    }
    Ok(())
}

#[inline]
pub(super) fn shr(step: &mut Step<'_>) -> Result<(), Trouble> {
    let by = shift(step, 1)?;
    let old = step.modify(|old| old >> by.count)?;
    if by.count != 0 {
        let result = old >> by.count;
        let carry = by.bit(old, by.count - 1);
        shifted(step, result, by.width, carry, top_two_differ(result, by.width));
    }
    Ok(())
}

#[inline]
pub(super) fn sar(step: &mut Step<'_>) -> Result<(), Trouble> {
    let by = shift(step, 1)?;
    let change = |old: u64| cut((extend(old, by.width) as i64 >> by.count) as u64, by.width);
    let old = step.modify(change)?;
    if by.count != 0 {
        let carry = by.bit(extend(old, by.width), by.count - 1);
        shifted(step, change(old), by.width, carry, false);
    }
    Ok(())
}

/// Rotations change CF and OF alone.
#[inline]
fn rotated(step: &mut Step<'_>, carry: bool, overflow: bool) {
    let flags = only(carry, flag::CARRY) | only(overflow, flag::OVERFLOW);
    replace(step.cpu, flag::CARRY | flag::OVERFLOW, flags);
}

/// `value`, of `bits` bits, rotated to the left.
fn rotate_left(value: u128, bits: u32, count: u32) -> u128 {
    let count = count % bits;
    (value << count | value >> (bits - count)) & ((1 << bits) - 1)
}

#[inline]
pub(super) fn rol(step: &mut Step<'_>) -> Result<(), Trouble> {
    let by = shift(step, 1)?;
    let change = |old: u64| rotate_left(old.into(), by.bits, by.count) as u64;
    let result = change(step.modify(change)?);
    if by.count != 0 {
        let carry = result & 1 != 0;
        rotated(step, carry, top(result, by.width) != carry);
    }
    Ok(())
}

#[inline]
pub(super) fn ror(step: &mut Step<'_>) -> Result<(), Trouble> {
    let by = shift(step, 1)?;
    let change = |old: u64| rotate_left(old.into(), by.bits, by.bits - by.count % by.bits) as u64;
    let result = change(step.modify(change)?);
    if by.count != 0 {
        rotated(step, top(result, by.width), top_two_differ(result, by.width));
    }
    Ok(())
}

/// RCL and RCR: CF is one bit more, above the others.
pub(super) fn rotate_through_carry(step: &mut Step<'_>, left: bool) -> Result<(), Trouble> {
    let by = shift(step, 1)?;
    let bits = by.bits + 1;
    let count = by.count % bits;
    let to_left = if left { count } else { bits - count };
    let carry = u128::from(step.cpu.flag(flag::CARRY)) << by.bits;
    let change = |old: u64| rotate_left(carry | u128::from(old), bits, to_left);
    let old = step.modify(|old| cut(change(old) as u64, by.width))?;
    if count != 0 {
        let whole = change(old);
        let (result, carry) = (cut(whole as u64, by.width), whole >> by.bits != 0);
        let sign = top(result, by.width);
        rotated(step, carry, if left { sign != carry } else { top_two_differ(result, by.width) });
    }
    Ok(())
}

/// SHLD and SHRD. Of 16 bits moved by more than that the result is undefined: it is that of the operands side by side, the
/// destination a second time behind the source.
pub(super) fn shift_double(step: &mut Step<'_>, left: bool) -> Result<(), Trouble> {
    let by = shift(step, 2)?;
    let source = step.read(1)?;
    if by.count == 0 {
        return step.modify(|old| old).map(drop);
    }
    let bits = by.bits;
    let change = |old: u64| {
        let (old, source) = (u128::from(old), u128::from(source));
        let whole = if left {
            // For 16 bits there is room for three.
            let below = if bits == 16 { source << 16 | old } else { source };
            let room = if bits == 16 { 32 } else { bits };
            (old << room | below) << by.count >> room
        } else {
            let above = if bits == 16 { old << 32 } else { 0 };
            (above | source << bits | old) >> by.count
        };
        cut(whole as u64, by.width)
    };
    let old = step.modify(change)?;
    let result = change(old);
    let carry = if left {
        by.count <= bits && by.bit(old, bits - by.count)
    } else {
        by.bit(old, by.count - 1)
    };
    let overflow = top(old ^ result, by.width);
    shifted(step, result, by.width, carry, overflow);
    Ok(())
}
