//! Strings (SDM vol. 1, 7.3.9; vol. 2).
//!
//! What is repeated is done a page's worth at a time: the registers then say how far it came, as after an interrupt, and RIP
//! is at the instruction again. Forward moves and stores, of which a kernel's copying and clearing are made, are done in
//! bulk where that is the same as one element after the other.

use iced_x86::{OpKind, Register};
use vm_memory::Bytes;

use crate::emulate::cpu::flag;
use crate::emulate::linear::{Access, PAGE, Trouble};
use crate::emulate::step::{Step, cut};

use super::flags::{of_difference, replace};

/// How many bytes are done before others have a chance.
const BUDGET: u64 = PAGE;
/// Copies up to this size are made through less of the stack.
const SHORT: usize = 256;

/// The registers that one instruction uses, and how it goes.
#[derive(Clone, Copy)]
struct Pass {
    width: u64,
    count: Register,
    source: Register,
    target: Register,
    /// What an address moves by.
    stride: u64,
    repeats: bool,
}

fn pass(step: &Step<'_>, width: u64) -> Pass {
    let instruction = step.instruction;
    let kinds = (0..instruction.op_count()).map(|operand| instruction.op_kind(operand));
    let (mut count, mut source, mut target) = (Register::RCX, Register::RSI, Register::RDI);
    for kind in kinds {
        match kind {
            OpKind::MemorySegESI | OpKind::MemoryESEDI => {
                (count, source, target) = (Register::ECX, Register::ESI, Register::EDI);
            }
            OpKind::MemorySegSI | OpKind::MemoryESDI => {
                (count, source, target) = (Register::CX, Register::SI, Register::DI);
            }
            _ => {}
        }
    }
    let backward = step.cpu.flag(flag::DIRECTION);
    Pass {
        width,
        count,
        source,
        target,
        stride: if backward { width.wrapping_neg() } else { width },
        repeats: instruction.has_rep_prefix() || instruction.has_repne_prefix(),
    }
}

impl Pass {
    /// How many elements are left.
    fn left(self, step: &Step<'_>) -> u64 {
        if self.repeats { step.cpu.get(self.count).unwrap_or(0) } else { 1 }
    }

    /// How many of them are done now.
    fn now(self, step: &Step<'_>) -> u64 {
        self.left(step).min(BUDGET / self.width)
    }

    fn from(self, step: &Step<'_>) -> Result<u64, Trouble> {
        let offset = step.cpu.get(self.source).ok_or(Trouble::Unknown)?;
        step.linear(step.instruction.memory_segment(), offset)
    }

    fn to(self, step: &Step<'_>) -> Result<u64, Trouble> {
        step.linear(Register::ES, step.cpu.get(self.target).ok_or(Trouble::Unknown)?)
    }

    fn advance(self, step: &mut Step<'_>, register: Register, elements: u64) {
        let at = step.cpu.get(register).unwrap_or(0);
        step.cpu.set(register, at.wrapping_add(self.stride.wrapping_mul(elements)));
    }

    /// Counts `elements` as done.
    fn done(self, step: &mut Step<'_>, elements: u64) {
        if self.repeats {
            let left = self.left(step).wrapping_sub(elements);
            step.cpu.set(self.count, left);
        }
    }

    /// Stays at the instruction while something is left to do.
    fn again(self, step: &mut Step<'_>) {
        if self.repeats && self.left(step) != 0 {
            step.cpu.regs.rip = step.instruction.ip();
        }
    }

    /// Whether more than one element may be done at a time. An offset that wraps is done singly.
    fn in_bulk(self, step: &Step<'_>, register: Register) -> bool {
        let offset = step.cpu.get(register).unwrap_or(0);
        let last = u64::MAX >> (64 - 8 * register.size());
        self.repeats && self.stride == self.width && last - offset >= BUDGET
    }
}

/// How many bytes behind `address` its page has.
fn room(address: u64) -> u64 {
    PAGE - address % PAGE
}

pub(super) fn movs(step: &mut Step<'_>, width: u64) -> Result<(), Trouble> {
    let pass = pass(step, width);
    let mut now = pass.now(step);
    while now > 0 {
        let (from, to) = (pass.from(step)?, pass.to(step)?);
        let mut bytes = (now * width).min(room(from)).min(room(to));
        // A copy to shortly behind its source reads what it has written: no more than what lies between at a time.
        let ahead = to.wrapping_sub(from);
        if ahead > 0 {
            bytes = bytes.min(ahead);
        }
        let bulk = pass.in_bulk(step, pass.source) && pass.in_bulk(step, pass.target);
        let elements = if bulk && bytes >= 2 * width {
            bytes -= bytes % width;
            if bytes <= SHORT as u64 {
                copy::<SHORT>(step, from, to, bytes as usize)?;
            } else {
                copy::<{ PAGE as usize }>(step, from, to, bytes as usize)?;
            }
            bytes / width
        } else {
            let value = step.memory.load(from, width as usize)?;
            step.memory.store(to, width as usize, value)?;
            1
        };
        pass.advance(step, pass.source, elements);
        pass.advance(step, pass.target, elements);
        pass.done(step, elements);
        now -= elements;
    }
    pass.again(step);
    Ok(())
}

/// Copies within one page each. Not from slice to slice: of two that are held at once the one may wait for the other.
fn copy<const MOST: usize>(
    step: &Step<'_>,
    from: u64,
    to: u64,
    bytes: usize,
) -> Result<(), Trouble> {
    let mut between = [0; MOST];
    let between = &mut between[..bytes];
    step.memory.read(from, between, Access::Read)?;
    step.memory.write(to, between)
}

pub(super) fn stos(step: &mut Step<'_>, width: u64) -> Result<(), Trouble> {
    let pass = pass(step, width);
    let value = cut(step.cpu.regs.rax, width as usize);
    let mut now = pass.now(step);
    while now > 0 {
        let to = pass.to(step)?;
        let bytes = (now * width).min(room(to));
        let elements = if pass.in_bulk(step, pass.target) && bytes >= 2 * width {
            let bytes = bytes - bytes % width;
            fill(step, to, bytes as usize, value, width as usize)?;
            bytes / width
        } else {
            step.memory.store(to, width as usize, value)?;
            1
        };
        pass.advance(step, pass.target, elements);
        pass.done(step, elements);
        now -= elements;
    }
    pass.again(step);
    Ok(())
}

/// Fills `bytes` bytes of one page.
fn fill(step: &Step<'_>, to: u64, bytes: usize, value: u64, width: usize) -> Result<(), Trouble> {
    let mut pattern = [0; SHORT];
    if value != 0 {
        for element in pattern[..SHORT.min(bytes)].chunks_exact_mut(width) {
            element.copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }
    step.memory.with(to, bytes, Access::Write, &mut |slice| {
        for at in (0..bytes).step_by(SHORT) {
            let piece = &pattern[..SHORT.min(bytes - at)];
            slice.write_slice(piece, at).expect("the slice is as long as was asked for");
        }
    })
}

pub(super) fn lods(step: &mut Step<'_>, width: u64) -> Result<(), Trouble> {
    let pass = pass(step, width);
    let into = step.instruction.op_register(0);
    for _ in 0..pass.now(step) {
        let value = step.memory.load(pass.from(step)?, width as usize)?;
        step.cpu.set(into, value).ok_or(Trouble::Unknown)?;
        pass.advance(step, pass.source, 1);
        pass.done(step, 1);
    }
    pass.again(step);
    Ok(())
}

/// Flags of a comparison; whether the next one is to be made, as far as the prefix decides that.
fn compare(step: &mut Step<'_>, first: u64, second: u64, width: u64) -> bool {
    let width = width as usize;
    let difference = cut(first.wrapping_sub(second), width);
    replace(step.cpu, flag::STATUS, of_difference(first, second, difference, width));
    (difference == 0) != step.instruction.has_repne_prefix()
}

pub(super) fn scas(step: &mut Step<'_>, width: u64) -> Result<(), Trouble> {
    let pass = pass(step, width);
    let wanted = cut(step.cpu.regs.rax, width as usize);
    for _ in 0..pass.now(step) {
        let value = step.memory.load(pass.to(step)?, width as usize)?;
        pass.advance(step, pass.target, 1);
        pass.done(step, 1);
        if !compare(step, wanted, value, width) {
            return Ok(());
        }
    }
    pass.again(step);
    Ok(())
}

pub(super) fn cmps(step: &mut Step<'_>, width: u64) -> Result<(), Trouble> {
    let pass = pass(step, width);
    for _ in 0..pass.now(step) {
        let first = step.memory.load(pass.from(step)?, width as usize)?;
        let second = step.memory.load(pass.to(step)?, width as usize)?;
        pass.advance(step, pass.source, 1);
        pass.advance(step, pass.target, 1);
        pass.done(step, 1);
        if !compare(step, first, second, width) {
            return Ok(());
        }
    }
    pass.again(step);
    Ok(())
}
