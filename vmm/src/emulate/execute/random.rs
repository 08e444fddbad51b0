//! RDRAND and RDSEED: from the host's generator.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::emulate::cpu::flag;
use crate::emulate::linear::Trouble;
use crate::emulate::step::Step;

/// CF is set: there is always a number.
pub(super) fn random(step: &mut Step<'_>) -> Result<(), Trouble> {
    let mut raw = [0; 8];
    let read = getrandom(&mut raw, GetRandomFlags::empty());
    if !read.is_ok_and(|count| count == raw.len()) {
        return Err(Trouble::State("the host has no random numbers"));
    }
    step.write(0, u64::from_le_bytes(raw))?;
    step.cpu.set_flag(flag::STATUS, false);
    step.cpu.set_flag(flag::CARRY, true);
    Ok(())
}
