//! How an exception or a software interrupt reaches the guest.
//!
//! From 64-bit ring 0 to a gate of ring 0, which is what a kernel's own exceptions are, it is delivered here (SDM vol. 3A,
//! 6.14). Everything else is given to KVM, which delivers it when it runs the guest.

use super::Why;
use super::cpu::{Cpu, flag};
use super::exception::{Exception, Kind};
use super::linear::{Linear, Trouble};
use super::vcpu::Hosted;

/// A gate of the IDT in 64-bit mode (SDM vol. 3A, 6.14.1).
const GATE_BYTES: u64 = 16;
const INTERRUPT_GATE: u64 = 0xe;
const TRAP_GATE: u64 = 0xf;
/// Where the task state segment has its interrupt stack table (SDM vol. 3A, 7.7).
const TSS_IST1: u64 = 0x24;

/// Who goes on with an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The vCPU stands at its handler.
    Done,
    /// KVM has it and delivers it first of all.
    Kvm,
}

/// Delivers `exception`, raised by the instruction that `cpu` has carried out or stands at.
///
/// # Errors
/// KVM does not take it.
pub(super) fn deliver(
    vcpu: &Hosted<'_>,
    cpu: &mut Cpu,
    memory: &dyn Linear,
    exception: Exception,
) -> Result<Delivery, Why> {
    if let Some(address) = exception.address {
        cpu.sregs.cr2 = address;
        cpu.special_changed = true;
    }
    // Where the delivery itself meets a fault, KVM makes what it must of the two.
    if through_gate(cpu, memory, exception) == Ok(true) {
        return Ok(Delivery::Done);
    }
    vcpu.store(cpu)?;
    vcpu.inject(exception.vector, exception.code)?;
    Ok(Delivery::Kvm)
}

/// Enters the handler, if it is one of 64-bit ring 0 and this is that, too; nothing has changed otherwise.
pub(super) fn through_gate(
    cpu: &mut Cpu,
    memory: &dyn Linear,
    exception: Exception,
) -> Result<bool, Trouble> {
    if cpu.cpl() != 0 || cpu.bitness() != 64 {
        return Ok(false);
    }
    // The segment that is there already is the one segment whose descriptor need not be read.
    let gate = match gate(cpu, memory, exception.vector)? {
        Some(gate) if gate.selector == cpu.sregs.cs.selector => gate,
        _ => return Ok(false),
    };
    let mut stack = match gate.ist {
        0 => cpu.regs.rsp,
        ist => memory.load(cpu.sregs.tr.base + TSS_IST1 + (ist - 1) * 8, 8)?,
    } & !15;
    // A fault is restarted without meeting the breakpoint at its instruction again (SDM vol. 3B, 17.3.1.1).
    let resume = if exception.kind == Kind::Fault { flag::RESUME } else { 0 };
    let mut frame = [0; 48];
    let values = [
        exception.code.unwrap_or(0).into(),
        cpu.regs.rip,
        cpu.sregs.cs.selector.into(),
        cpu.regs.rflags | resume,
        cpu.regs.rsp,
        cpu.sregs.ss.selector.into(),
    ];
    for (place, value) in frame.chunks_exact_mut(8).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    let frame = if exception.code.is_some() { &frame[..] } else { &frame[8..] };
    stack -= frame.len() as u64;
    memory.write(stack, frame)?;
    cpu.regs.rsp = stack;
    cpu.regs.rip = gate.handler;
    let mut cleared = flag::TRAP | flag::NESTED | flag::RESUME | flag::VIRTUAL_8086;
    cleared |= if gate.masks { flag::INTERRUPT } else { 0 };
    cpu.set_flag(cleared, false);
    Ok(true)
}

/// What a gate of the IDT says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    /// The handler's first instruction.
    pub(super) handler: u64,
    selector: u16,
    /// The place in the interrupt stack table, 0 for none.
    ist: u64,
    /// Whether interrupts are off in the handler.
    masks: bool,
}

/// The gate of `vector` in 64-bit mode, if it is there.
///
/// # Errors
/// The table cannot be read.
pub(super) fn gate(cpu: &Cpu, memory: &dyn Linear, vector: u8) -> Result<Option<Gate>, Trouble> {
    let idt = cpu.sregs.idt;
    let offset = u64::from(vector) * GATE_BYTES;
    if offset + GATE_BYTES - 1 > idt.limit.into() {
        return Ok(None);
    }
    let low = memory.load(idt.base + offset, 8)?;
    let high = memory.load(idt.base + offset + 8, 8)?;
    let (kind, present) = (low >> 40 & 0x1f, low >> 47 & 1 != 0);
    let known = matches!(kind, INTERRUPT_GATE | TRAP_GATE);
    Ok((present && known).then_some(Gate {
        handler: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
        selector: (low >> 16) as u16,
        ist: low >> 32 & 7,
        masks: kind == INTERRUPT_GATE,
    }))
}
