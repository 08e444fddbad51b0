//! CMPXCHG8B and CMPXCHG16B (SDM vol. 2A).
#![allow(unsafe_code, reason = "16 bytes are exchanged atomically by an instruction alone")]

use std::arch::asm;

use iced_x86::Register;

use crate::emulate::cpu::flag;
use crate::emulate::exception::Exception;
use crate::emulate::linear::{Access, Trouble};
use crate::emulate::step::Step;

/// With LOCK or without, one step for other vCPUs: the memory that they see is exchanged in place.
pub(super) fn cmpxchg8b(step: &mut Step<'_>) -> Result<(), Trouble> {
    let pair = |step: &Step<'_>, high, low| Some(step.cpu.get(high)? << 32 | step.cpu.get(low)?);
    let expected = pair(step, Register::EDX, Register::EAX).ok_or(Trouble::Unknown)?;
    let new = pair(step, Register::ECX, Register::EBX).ok_or(Trouble::Unknown)?;
    let address = step.address()?;
    let found =
        step.memory.exchange(address, 8, &mut |old| if old == expected { new } else { old })?;
    step.cpu.set_flag(flag::ZERO, found == expected);
    if found != expected {
        step.cpu.set(Register::EDX, found >> 32);
        step.cpu.set(Register::EAX, found);
    }
    Ok(())
}

/// The same with 16 bytes, which have to be aligned.
pub(super) fn cmpxchg16b(step: &mut Step<'_>) -> Result<(), Trouble> {
    let regs = &step.cpu.regs;
    let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let (expected, new) = (pair(regs.rdx, regs.rax), pair(regs.rcx, regs.rbx));
    let address = step.address()?;
    if address % 16 != 0 {
        return Err(Exception::protection().into());
    }
    if !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return Err(Trouble::Unknown);
    }
    let mut found = 0;
    step.memory.with(address, 16, Access::Write, &mut |slice| {
        let guard = slice.ptr_guard_mut();
        // SAFETY: the guard's 16 bytes are mapped, writable, and aligned as a page is; they are the guest's, whose other
        // vCPUs and devices access them atomically or not as on the machine itself. The processor has the instruction.
        found = unsafe { exchange(guard.as_ptr().cast(), expected, new) };
    })?;
    let equal = found == expected;
    step.cpu.set_flag(flag::ZERO, equal);
    if !equal {
        step.cpu.regs.rdx = (found >> 64) as u64;
        step.cpu.regs.rax = found as u64;
    }
    Ok(())
}

/// What was at `at`, which is `new` now if that was `expected`.
///
/// # Safety
/// `at` is valid for reads and writes of 16 aligned bytes, and the processor has CMPXCHG16B.
unsafe fn exchange(at: *mut u128, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the caller's. RBX is the compiler's own and cannot be named; it is as before afterwards.
    unsafe {
        asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [{at}]",
            "mov rbx, {new_low}",
            at = in(reg) at,
            new_low = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}
