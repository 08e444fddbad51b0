//! Software interrupts (SDM vol. 2A, INT n/INTO/INT3/INT1) and undefined instructions.

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
