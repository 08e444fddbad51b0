//! Logic, single bits and the search for one (SDM vol. 2).

use iced_x86::OpKind;

use crate::emulate::cpu::flag;
use crate::emulate::linear::Trouble;
use crate::emulate::step::{Step, extend};

use super::flags::{of_result, replace};

/// AND, OR and XOR. AF is undefined, and cleared.
#[inline]
pub(super) fn combine(
    step: &mut Step<'_>,
    combine: impl Fn(u64, u64) -> u64,
) -> Result<(), Trouble> {
    let (width, source) = (step.width(0), step.source(1)?);
    let old = step.modify(|old| combine(old, source))?;
    replace(step.cpu, flag::STATUS, of_result(combine(old, source), width));
    Ok(())
}

#[inline]
pub(super) fn test(step: &mut Step<'_>) -> Result<(), Trouble> {
    let width = step.width(0);
    let both = step.read(0)? & step.source(1)?;
    replace(step.cpu, flag::STATUS, of_result(both, width));
    Ok(())
}

/// No flags are changed; bits above the operand are cut when it is written.
#[inline]
pub(super) fn not(step: &mut Step<'_>) -> Result<(), Trouble> {
    step.modify(|old| !old).map(drop)
}

/// What is done to a bit that has been looked at.
#[derive(Clone, Copy)]
pub(super) enum Change {
    None,
    Set,
    Reset,
    Complement,
}

/// BT, BTS, BTR and BTC: the bit goes to CF; the other flags are undefined or unaffected, and left. In memory, an offset
/// that is in a register reaches beyond the operand, in both directions.
#[inline]
pub(super) fn bit(step: &mut Step<'_>, change: Change) -> Result<(), Trouble> {
    let width = step.width(0);
    let bits = 8 * width as u64;
    let offset = step.read(1)?;
    let mask = 1 << (offset & (bits - 1));
    let changed = |old: u64| match change {
        Change::None => old,
        Change::Set => old | mask,
        Change::Reset => old & !mask,
        Change::Complement => old ^ mask,
    };
    let old = if step.is_memory(0) {
        let is_string = step.instruction.op_kind(1) == OpKind::Register;
        let bytes = if is_string {
            (extend(offset, width) as i64 >> bits.trailing_zeros()).wrapping_mul(width as i64)
        } else {
            0
        };
        let address = step.address_beyond(bytes as u64)?;
        match change {
            Change::None => step.memory.load(address, width)?,
            _ => step.modify_at(address, changed)?,
        }
    } else {
        let old = step.read(0)?;
        if !matches!(change, Change::None) {
            step.write(0, changed(old))?;
        }
        old
    };
    step.cpu.set_flag(flag::CARRY, old & mask != 0);
    Ok(())
}

/// BSF and BSR. Of zero only ZF is told, and the destination left whole, which AMD promises and Intel does; the other flags
/// are undefined, and left.
#[inline]
pub(super) fn scan(step: &mut Step<'_>, find: impl Fn(u64) -> u32) -> Result<(), Trouble> {
    let value = step.read(1)?;
    if value != 0 {
        step.write(0, find(value).into())?;
    }
    step.cpu.set_flag(flag::ZERO, value == 0);
    Ok(())
}
