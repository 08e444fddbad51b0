//! Addition, subtraction, multiplication and division of integers (SDM vol. 2).

use iced_x86::Register;

use crate::emulate::cpu::flag;
use crate::emulate::exception::{DIVIDE, Exception};
use crate::emulate::linear::Trouble;
use crate::emulate::step::{Step, cut, extend};

use super::flags::{of_difference, of_result, of_sum, only, replace};

fn accumulator(width: usize) -> Register {
    match width {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

/// ADD, and ADC with CF.
#[inline]
pub(super) fn add(step: &mut Step<'_>, with_carry: bool) -> Result<(), Trouble> {
    let (width, source) = (step.width(0), step.source(1)?);
    let carry = u64::from(with_carry && step.cpu.flag(flag::CARRY));
    let sum = |old: u64| cut(old.wrapping_add(source).wrapping_add(carry), width);
    let old = step.modify(sum)?;
    replace(step.cpu, flag::STATUS, of_sum(old, source, sum(old), width));
    Ok(())
}

/// SUB, and SBB with CF.
#[inline]
pub(super) fn sub(step: &mut Step<'_>, with_borrow: bool) -> Result<(), Trouble> {
    let (width, source) = (step.width(0), step.source(1)?);
    let borrow = u64::from(with_borrow && step.cpu.flag(flag::CARRY));
    let difference = |old: u64| cut(old.wrapping_sub(source).wrapping_sub(borrow), width);
    let old = step.modify(difference)?;
    replace(step.cpu, flag::STATUS, of_difference(old, source, difference(old), width));
    Ok(())
}

#[inline]
pub(super) fn cmp(step: &mut Step<'_>) -> Result<(), Trouble> {
    let width = step.width(0);
    let (old, source) = (step.read(0)?, step.source(1)?);
    let difference = cut(old.wrapping_sub(source), width);
    replace(step.cpu, flag::STATUS, of_difference(old, source, difference, width));
    Ok(())
}

/// INC and DEC leave CF.
const WITHOUT_CARRY: u64 = flag::STATUS & !flag::CARRY;

#[inline]
pub(super) fn inc(step: &mut Step<'_>) -> Result<(), Trouble> {
    let width = step.width(0);
    let old = step.modify(|old| cut(old.wrapping_add(1), width))?;
    let flags = of_sum(old, 1, cut(old.wrapping_add(1), width), width);
    replace(step.cpu, WITHOUT_CARRY, flags & WITHOUT_CARRY);
    Ok(())
}

#[inline]
pub(super) fn dec(step: &mut Step<'_>) -> Result<(), Trouble> {
    let width = step.width(0);
    let old = step.modify(|old| cut(old.wrapping_sub(1), width))?;
    let flags = of_difference(old, 1, cut(old.wrapping_sub(1), width), width);
    replace(step.cpu, WITHOUT_CARRY, flags & WITHOUT_CARRY);
    Ok(())
}

pub(super) fn neg(step: &mut Step<'_>) -> Result<(), Trouble> {
    let width = step.width(0);
    let old = step.modify(|old| cut(old.wrapping_neg(), width))?;
    let flags = of_difference(0, old, cut(old.wrapping_neg(), width), width);
    replace(step.cpu, flag::STATUS, flags);
    Ok(())
}

/// Where both operands are one register, it gets the sum.
pub(super) fn xadd(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (width, source) = (step.width(0), step.read(1)?);
    let sum = |old: u64| cut(old.wrapping_add(source), width);
    let old = if step.is_memory(0) {
        let old = step.modify(sum)?;
        step.write(1, old)?;
        old
    } else {
        let old = step.read(0)?;
        step.write(1, old)?;
        step.write(0, sum(old))?;
        old
    };
    replace(step.cpu, flag::STATUS, of_sum(old, source, sum(old), width));
    Ok(())
}

/// Memory is written either way, with what it was if that is not what was expected; a register is not.
pub(super) fn cmpxchg(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (width, new) = (step.width(0), step.read(1)?);
    let accumulator = accumulator(width);
    let expected = step.cpu.get(accumulator).ok_or(Trouble::Unknown)?;
    let old = if step.is_memory(0) {
        step.modify(|old| if old == expected { new } else { old })?
    } else {
        let old = step.read(0)?;
        if old == expected {
            step.write(0, new)?;
        }
        old
    };
    if old != expected {
        step.cpu.set(accumulator, old).ok_or(Trouble::Unknown)?;
    }
    let difference = cut(expected.wrapping_sub(old), width);
    replace(step.cpu, flag::STATUS, of_difference(expected, old, difference, width));
    Ok(())
}

/// CF and OF: whether the high half is more than the low one's sign. The others are undefined: they are set as processors
/// of today do, after the low half.
fn product_flags(step: &mut Step<'_>, low: u64, width: usize, overflows: bool) {
    let flags = of_result(low, width) & !flag::ZERO;
    let overflow = only(overflows, flag::CARRY | flag::OVERFLOW);
    replace(step.cpu, flag::STATUS, flags | overflow);
}

/// The two halves of a product or dividend of twice `width` bytes: AH:AL, DX:AX, EDX:EAX or RDX:RAX.
fn halves(width: usize) -> (Register, Register) {
    match width {
        1 => (Register::AH, Register::AL),
        2 => (Register::DX, Register::AX),
        4 => (Register::EDX, Register::EAX),
        _ => (Register::RDX, Register::RAX),
    }
}

fn set_halves(step: &mut Step<'_>, high: u64, low: u64, width: usize) -> Result<(), Trouble> {
    let (to_high, to_low) = halves(width);
    step.cpu.set(to_low, low).ok_or(Trouble::Unknown)?;
    step.cpu.set(to_high, high).ok_or(Trouble::Unknown)
}

pub(super) fn mul(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (width, factor) = (step.width(0), step.read(0)?);
    let other = cut(step.cpu.regs.rax, width);
    let product = u128::from(factor) * u128::from(other);
    let (low, high) = (cut(product as u64, width), (product >> (8 * width)) as u64);
    set_halves(step, high, low, width)?;
    product_flags(step, low, width, high != 0);
    Ok(())
}

pub(super) fn imul(step: &mut Step<'_>) -> Result<(), Trouble> {
    let width = step.width(0);
    let signed = |value: u64| i128::from(extend(value, width) as i64);
    let (a, b) = match step.instruction.op_count() {
        1 => (step.cpu.regs.rax, step.read(0)?),
        2 => (step.read(0)?, step.read(1)?),
        _ => (step.read(1)?, step.source(2)?),
    };
    let product = signed(a) * signed(b);
    let low = cut(product as u64, width);
    if step.instruction.op_count() == 1 {
        set_halves(step, (product >> (8 * width)) as u64, low, width)?;
    } else {
        step.write(0, low)?;
    }
    product_flags(step, low, width, product != signed(low));
    Ok(())
}

/// What is divided, and by what; #DE for nothing.
fn division(step: &Step<'_>) -> Result<(u128, u64, usize), Trouble> {
    let (width, divisor) = (step.width(0), step.read(0)?);
    if divisor == 0 {
        return Err(Exception::fault(DIVIDE).into());
    }
    let (high, low) = halves(width);
    let half = |register| step.cpu.get(register).map(u128::from).ok_or(Trouble::Unknown);
    Ok((half(high)? << (8 * width) | half(low)?, divisor, width))
}

/// The flags are undefined, and left. A quotient that does not fit is #DE.
pub(super) fn div(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (dividend, divisor, width) = division(step)?;
    let divisor = u128::from(divisor);
    let (quotient, rest) = match u64::try_from(dividend) {
        // Division of 128 bits is a long routine.
        Ok(dividend) => {
            let divisor = divisor as u64;
            (u128::from(dividend / divisor), dividend % divisor)
        }
        Err(_) => (dividend / divisor, (dividend % divisor) as u64),
    };
    if quotient >> (8 * width) != 0 {
        return Err(Exception::fault(DIVIDE).into());
    }
    set_halves(step, rest, quotient as u64, width)
}

pub(super) fn idiv(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (dividend, divisor, width) = division(step)?;
    let unused = 128 - 16 * width as u32;
    let dividend = ((dividend << unused) as i128) >> unused;
    let divisor = i128::from(extend(divisor, width) as i64);
    // The one quotient that does not fit in 128 bits does not fit in 64 either.
    let quotient = dividend.wrapping_div(divisor);
    let fits = i128::from(extend(quotient as u64, width) as i64) == quotient;
    if !fits || (dividend == i128::MIN && divisor == -1) {
        return Err(Exception::fault(DIVIDE).into());
    }
    let rest = dividend.wrapping_rem(divisor);
    set_halves(step, rest as u64, quotient as u64, width)
}
