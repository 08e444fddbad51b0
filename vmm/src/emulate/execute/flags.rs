//! The flags that integer instructions set, and the conditions made of them (SDM vol. 1, 3.4.3.1; appendix B).

use iced_x86::ConditionCode;

use crate::emulate::cpu::{Cpu, flag};

/// Whether `condition` holds.
#[inline]
pub(super) fn condition(cpu: &Cpu, condition: ConditionCode) -> bool {
    let flags = cpu.regs.rflags;
    let is = |flag: u64| flags & flag != 0;
    let less = is(flag::SIGN) != is(flag::OVERFLOW);
    match condition {
        ConditionCode::None => true,
        ConditionCode::o => is(flag::OVERFLOW),
        ConditionCode::no => !is(flag::OVERFLOW),
        ConditionCode::b => is(flag::CARRY),
        ConditionCode::ae => !is(flag::CARRY),
        ConditionCode::e => is(flag::ZERO),
        ConditionCode::ne => !is(flag::ZERO),
        ConditionCode::be => is(flag::CARRY | flag::ZERO),
        ConditionCode::a => !is(flag::CARRY | flag::ZERO),
        ConditionCode::s => is(flag::SIGN),
        ConditionCode::ns => !is(flag::SIGN),
        ConditionCode::p => is(flag::PARITY),
        ConditionCode::np => !is(flag::PARITY),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => is(flag::ZERO) || less,
        ConditionCode::g => !is(flag::ZERO) && !less,
    }
}

/// The highest bit of `value`, which has `width` bytes.
#[inline]
pub(super) fn top(value: u64, width: usize) -> bool {
    value >> (8 * width - 1) & 1 != 0
}

/// `flag`, if it is `on`.
#[inline]
pub(super) fn only(on: bool, flag: u64) -> u64 {
    u64::from(on) * flag
}

/// Replaces the flags of `mask`.
#[inline]
pub(super) fn replace(cpu: &mut Cpu, mask: u64, flags: u64) {
    cpu.regs.rflags = cpu.regs.rflags & !mask | flags;
}

/// SF, ZF and PF of a result of `width` bytes, which has no bits above.
#[inline]
pub(super) fn of_result(result: u64, width: usize) -> u64 {
    only(result == 0, flag::ZERO)
        | only(top(result, width), flag::SIGN)
        | only((result as u8).count_ones().is_multiple_of(2), flag::PARITY)
}

/// All six of `sum`, which is `a` + `b`, or one more.
#[inline]
pub(super) fn of_sum(a: u64, b: u64, sum: u64, width: usize) -> u64 {
    let carries = a & b | (a | b) & !sum;
    of_result(sum, width)
        | only(top(carries, width), flag::CARRY)
        | (a ^ b ^ sum) & flag::ADJUST
        | only(top((a ^ sum) & (b ^ sum), width), flag::OVERFLOW)
}

/// All six of `difference`, which is `a` - `b`, or one less.
#[inline]
pub(super) fn of_difference(a: u64, b: u64, difference: u64, width: usize) -> u64 {
    let borrows = !a & b | (!a | b) & difference;
    of_result(difference, width)
        | only(top(borrows, width), flag::CARRY)
        | (a ^ b ^ difference) & flag::ADJUST
        | only(top((a ^ b) & (a ^ difference), width), flag::OVERFLOW)
}
