//! Counting, extracting and moving bits: POPCNT, ABM, BMI1, BMI2, ADX, CRC32, MOVBE (SDM vol. 2).

use iced_x86::OpKind;

use crate::emulate::cpu::flag;
use crate::emulate::exception::Exception;
use crate::emulate::linear::Trouble;
use crate::emulate::step::{Step, cut};

/// Sets ZF and CF, and clears the other flags that arithmetic sets.
fn zero_and_carry(step: &mut Step<'_>, zero: bool, carry: bool) {
    step.cpu.set_flag(flag::STATUS, false);
    step.cpu.set_flag(flag::ZERO, zero);
    step.cpu.set_flag(flag::CARRY, carry);
}

fn is_negative(value: u64, width: usize) -> bool {
    value >> (8 * width - 1) & 1 != 0
}

pub(super) fn popcnt(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = step.read(1)?;
    step.write(0, value.count_ones().into())?;
    zero_and_carry(step, value == 0, false);
    Ok(())
}

pub(super) fn lzcnt(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = step.read(1)?;
    let bits = 8 * step.width(0) as u64;
    let count = u64::from(value.leading_zeros()) - (64 - bits);
    count_zeroes(step, count, bits)
}

pub(super) fn tzcnt(step: &mut Step<'_>) -> Result<(), Trouble> {
    let bits = 8 * step.width(0) as u64;
    let count = u64::from(step.read(1)?.trailing_zeros()).min(bits);
    count_zeroes(step, count, bits)
}

/// SF, OF, AF and PF are undefined; processors leave them.
fn count_zeroes(step: &mut Step<'_>, count: u64, bits: u64) -> Result<(), Trouble> {
    step.write(0, count)?;
    step.cpu.set_flag(flag::ZERO, count == 0);
    step.cpu.set_flag(flag::CARRY, count == bits);
    Ok(())
}

/// Flags of BMI1's logic: ZF and SF of the result, OF clear; AF and PF are undefined, and left.
fn logic(step: &mut Step<'_>, result: u64, carry: bool) -> Result<(), Trouble> {
    let width = step.width(0);
    let result = cut(result, width);
    step.write(0, result)?;
    step.cpu.set_flag(flag::ZERO, result == 0);
    step.cpu.set_flag(flag::SIGN, is_negative(result, width));
    step.cpu.set_flag(flag::OVERFLOW, false);
    step.cpu.set_flag(flag::CARRY, carry);
    Ok(())
}

pub(super) fn andn(step: &mut Step<'_>) -> Result<(), Trouble> {
    let result = !step.read(1)? & step.read(2)?;
    logic(step, result, false)
}

pub(super) fn blsi(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = step.read(1)?;
    logic(step, value & value.wrapping_neg(), value != 0)
}

pub(super) fn blsmsk(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = step.read(1)?;
    logic(step, value ^ value.wrapping_sub(1), value == 0)
}

pub(super) fn blsr(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = step.read(1)?;
    logic(step, value & value.wrapping_sub(1), value == 0)
}

/// SF is undefined, and left. The form with an immediate is of processors that are no longer made.
pub(super) fn bextr(step: &mut Step<'_>) -> Result<(), Trouble> {
    if step.instruction.op_kind(2) != OpKind::Register {
        return Err(Exception::invalid_opcode().into());
    }
    let (value, control) = (step.read(1)?, step.read(2)?);
    let (start, length) = (control & 0xff, control >> 8 & 0xff);
    let shifted = if start < 64 { value >> start } else { 0 };
    let result = if length < 64 { shifted & ((1 << length) - 1) } else { shifted };
    step.write(0, result)?;
    step.cpu.set_flag(flag::ZERO, result == 0);
    step.cpu.set_flag(flag::CARRY | flag::OVERFLOW, false);
    Ok(())
}

pub(super) fn bzhi(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (value, index) = (step.read(1)?, step.read(2)? & 0xff);
    let bits = 8 * step.width(0) as u64;
    let kept = if index < bits { value & ((1 << index) - 1) } else { value };
    logic(step, kept, index >= bits)
}

pub(super) fn pdep(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (value, mut mask) = (step.read(1)?, step.read(2)?);
    let (mut result, mut next) = (0, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= if value >> next & 1 != 0 { lowest } else { 0 };
        mask ^= lowest;
        next += 1;
    }
    step.write(0, result)
}

pub(super) fn pext(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (value, mut mask) = (step.read(1)?, step.read(2)?);
    let (mut result, mut next) = (0, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= u64::from(value & lowest != 0) << next;
        mask ^= lowest;
        next += 1;
    }
    step.write(0, result)
}

pub(super) fn rorx(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (value, by) = (step.read(1)?, step.read(2)? as u32);
    let rotated = match step.width(0) {
        4 => (value as u32).rotate_right(by & 31).into(),
        _ => value.rotate_right(by & 63),
    };
    step.write(0, rotated)
}

pub(super) fn sarx(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (value, by) = (step.read(1)?, step.read(2)?);
    let shifted = match step.width(0) {
        4 => (value as i32 >> (by & 31)) as u64,
        _ => (value as i64 >> (by & 63)) as u64,
    };
    step.write(0, shifted)
}

pub(super) fn shlx(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (value, by) = (step.read(1)?, step.read(2)?);
    let by = by & if step.width(0) == 4 { 31 } else { 63 };
    step.write(0, value << by)
}

pub(super) fn shrx(step: &mut Step<'_>) -> Result<(), Trouble> {
    let (value, by) = (step.read(1)?, step.read(2)?);
    let by = by & if step.width(0) == 4 { 31 } else { 63 };
    step.write(0, value >> by)
}

/// The high half comes last: where both name one register, it is what stays.
pub(super) fn mulx(step: &mut Step<'_>) -> Result<(), Trouble> {
    let value = step.read(2)?;
    let (low, high) = match step.width(0) {
        4 => {
            let product = u64::from(step.cpu.regs.rdx as u32) * value;
            (product & 0xffff_ffff, product >> 32)
        }
        _ => {
            let product = u128::from(step.cpu.regs.rdx) * u128::from(value);
            (product as u64, (product >> 64) as u64)
        }
    };
    step.write(1, low)?;
    step.write(0, high)
}

pub(super) fn adcx(step: &mut Step<'_>) -> Result<(), Trouble> {
    add_with(step, flag::CARRY)
}

pub(super) fn adox(step: &mut Step<'_>) -> Result<(), Trouble> {
    add_with(step, flag::OVERFLOW)
}

fn add_with(step: &mut Step<'_>, carry: u64) -> Result<(), Trouble> {
    let width = step.width(0);
    let sum =
        u128::from(step.read(0)?) + u128::from(step.read(1)?) + u128::from(step.cpu.flag(carry));
    step.write(0, cut(sum as u64, width))?;
    step.cpu.set_flag(carry, sum >> (8 * width) != 0);
    Ok(())
}

/// The polynomial 11EDC6F41h with its bits reversed.
const CASTAGNOLI: u32 = 0x82f6_3b78;

pub(super) fn crc32(step: &mut Step<'_>) -> Result<(), Trouble> {
    let bytes = step.read(1)?.to_le_bytes();
    let mut crc = step.read(0)? as u32;
    for byte in &bytes[..step.width(1)] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { CASTAGNOLI } else { 0 };
        }
    }
    step.write(0, crc.into())
}

pub(super) fn movbe(step: &mut Step<'_>) -> Result<(), Trouble> {
    let width = step.width(0);
    let swapped = step.read(1)?.swap_bytes() >> (64 - 8 * width);
    step.write(0, swapped)
}
