//! The rest of a SYSCALL.
//!
//! A KVM without VMX and SVM may carry SYSCALL out by halves: RCX, R11, RIP and RFLAGS are as they should be, CS and SS are
//! still those of ring 3. The entry is a page of the kernel's, so the fetch fails, and the guest gets a page fault from ring 3
//! at the entry itself. [`finish`] takes such a fault back at its handler's first instruction, and puts the vCPU where
//! SYSCALL puts it.
//!
//! # Who else comes there
//! A program that jumps to the entry meets the same fault, and is taken for one that has made a system call from the address in
//! RCX. It gains nothing: it could have made that call, and returned there. R11 alone becomes flags that a program cannot set
//! (IOPL, IF), so those have to be what every program has.

use super::cpu::{Beyond, Cpu, flag};
use super::exception::page_fault;
use super::linear::{Linear, Trouble};
use kvm_bindings::kvm_segment;

const MSR_STAR: u32 = 0xc000_0081;
pub(super) const MSR_LSTAR: u32 = 0xc000_0082;

/// Takes a page fault back that was half a SYSCALL. `cpu` stands at the handler's first instruction; whether it was one.
///
/// # Errors
/// KVM does not tell a part of the state, or the stack cannot be read.
pub(super) fn finish(
    cpu: &mut Cpu,
    memory: &dyn Linear,
    beyond: &dyn Beyond,
) -> Result<bool, Trouble> {
    // Every fault and every tick comes here: KVM is asked for the entry when nothing else is against it.
    if !is_half(cpu, memory, cpu.sregs.cr2)? || cpu.sregs.cr2 != beyond.msr(MSR_LSTAR)? {
        return Ok(false);
    }
    complete(cpu, memory, beyond.msr(MSR_STAR)?)?;
    Ok(true)
}

/// A word of what an exception with an error code pushes: code, RIP, CS, RFLAGS, RSP, SS (SDM vol. 3A, 6.14.2).
fn pushed(cpu: &Cpu, memory: &dyn Linear, index: u64) -> Result<u64, Trouble> {
    memory.load(cpu.regs.rsp.wrapping_add(8 * index), 8)
}

/// Whether the page fault at whose handler `cpu` stands was half a SYSCALL to `entry`.
pub(super) fn is_half(cpu: &Cpu, memory: &dyn Linear, entry: u64) -> Result<bool, Trouble> {
    let [code, rip, cs] = [0, 1, 2].map(|index| pushed(cpu, memory, index));
    let fetch = u64::from(page_fault::USER | page_fault::FETCH);
    let privileged = flag::IOPL | flag::VIRTUAL_8086 | flag::INTERRUPT;
    Ok(rip? == entry
        && cpu.sregs.cr2 == entry
        && code? & fetch == fetch
        && cs? & 3 == 3
        && cpu.regs.r11 & privileged == flag::INTERRUPT)
}

/// The other half: what was pushed is taken back, but for CS and SS, which are as SYSCALL loads them from `star`.
pub(super) fn complete(cpu: &mut Cpu, memory: &dyn Linear, star: u64) -> Result<(), Trouble> {
    let [rip, flags, rsp] = [1, 3, 4].map(|index| pushed(cpu, memory, index));
    (cpu.regs.rip, cpu.regs.rflags, cpu.regs.rsp) = (rip?, flags? & !flag::RESUME, rsp?);
    let selector = (star >> 32) as u16 & !3;
    (cpu.sregs.cs, cpu.sregs.ss) = (code_segment(selector), stack_segment(selector + 8));
    cpu.special_changed = true;
    Ok(())
}

/// CS as SYSCALL loads it (SDM vol. 2B, SYSCALL): flat 64-bit code of ring 0.
fn code_segment(selector: u16) -> kvm_segment {
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..kvm_segment::default() };
    kvm_segment { selector, type_: 0xb, l: 1, ..flat }
}

/// SS: flat data that can be written.
fn stack_segment(selector: u16) -> kvm_segment {
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..kvm_segment::default() };
    kvm_segment { selector, type_: 3, db: 1, ..flat }
}
