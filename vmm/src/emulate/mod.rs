//! Instructions that KVM has no emulation for.
//!
//! Where KVM has VMX or SVM below it, the processor runs a guest's every instruction, and nothing of this is used. Where it
//! has not, it emulates the guest's ring 0, and stops at what its emulator does not know (`KVM_EXIT_INTERNAL_ERROR`,
//! suberror 1). [`assist`] then carries that one instruction out, or raises the exception that the processor would raise,
//! and the guest goes on.
//!
//! ```text
//!   mod.rs        one instruction: fetch, decode, carry out, commit      vcpu.rs     state to and from KVM
//!   step.rs       its operands                                           deliver.rs  exceptions, software interrupts
//!   execute/      what each does, by family                              counts.rs   how often which
//!   cpu.rs        general, segment and control registers
//!   area.rs       x87, SSE and extended state
//!   linear.rs     memory by linear address   paging.rs  to a guest-physical one   exception.rs  vectors and codes
//! ```
//!
//! # How it is like the processor
//! An instruction is decoded by `iced-x86`. Its operands are reached through the guest's own page tables, with permissions,
//! accessed and dirty bits; pages under them come from the memory service, which pins them while they are touched. Nothing
//! is committed before everything that can fault has been done. Each instruction's test lets the host's processor do the
//! same and compares registers, flags and memory.

mod area;
mod code;
mod counts;
mod cpu;
mod deliver;
mod exception;
mod execute;
mod linear;
mod interpret;
mod paging;
mod physical;
mod step;
mod tlb;
#[cfg(test)]
mod tests;
mod vcpu;

use std::fmt;

use iced_x86::Instruction;
use kvm_ioctls::VcpuFd;

use crate::ram::Ram;

pub use counts::Counts;
pub use deliver::Delivery;
pub use interpret::{Interpreter, Left};

use cpu::Cpu;
use exception::{Exception, Kind};
use linear::{Linear, Trouble};
use paging::Regime;
use physical::Physical;
use step::Step;
use tlb::{Tlb, Translations};

/// Why an instruction was not carried out; the vCPU is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The instruction's name, where the bytes are one.
    mnemonic: Option<String>,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// Nothing here knows it.
    Unknown,
    /// An operand is not in RAM.
    Absent(u64),
    /// KVM does not tell, or take, a part of the state.
    State(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mnemonic {
            Some(name) => write!(f, "this monitor does not carry out {name} either")?,
            None => f.write_str("the bytes are no instruction that this monitor knows")?,
        }
        match self.why {
            Why::Unknown => Ok(()),
            Why::Absent(gpa) => write!(f, " on guest-physical {gpa:#x}, where no RAM is"),
            Why::State(what) => write!(f, ": {what}"),
        }
    }
}

/// Carries out the instruction at which `vcpu` stands, and counts it.
///
/// # Errors
/// It is not known, or its operands are not in RAM: nothing is changed.
pub fn assist(vcpu: &VcpuFd, ram: &dyn Ram, counts: &Counts) -> Result<Delivery, Refusal> {
    let unread = |_| Refusal { mnemonic: None, why: Why::State("KVM does not tell its registers") };
    let regs = vcpu.get_regs().map_err(unread)?;
    let sregs = vcpu.get_sregs().map_err(unread)?;
    let mut cpu = Cpu::new(regs, sregs);
    let translations = Translations::default();
    let regime = Regime::of(&cpu.sregs, cpu.regs.rflags);
    let memory = Tlb::new(Physical::of(ram), regime, &translations);
    let bitness = cpu.bitness();
    let base = if bitness == 64 { 0 } else { cpu.sregs.cs.base };
    let at = base.wrapping_add(cpu.regs.rip);
    let instruction = match code::fetch(bitness, cpu.regs.rip, at, &memory) {
        Ok(instruction) => instruction,
        Err(Trouble::Raised(exception)) => {
            return commit(vcpu, &mut cpu, &memory, Some(exception)).map_err(|why| why.of(None));
        }
        Err(trouble) => return Err(Why::from(trouble).of(None)),
    };
    let done = carry_out(&instruction, &mut cpu, &memory, vcpu);
    let raised = match done {
        Ok(()) => None,
        Err(Trouble::Raised(exception)) => Some(exception),
        Err(trouble) => return Err(Why::from(trouble).of(Some(&instruction))),
    };
    let delivery = commit(vcpu, &mut cpu, &memory, raised);
    counts.note(instruction.mnemonic());
    delivery.map_err(|why| why.of(Some(&instruction)))
}

/// Carries it out on `cpu` and `memory`. RIP is behind it afterwards, or where the exception leaves it.
fn carry_out(
    instruction: &Instruction,
    cpu: &mut Cpu,
    memory: &dyn Linear,
    beyond: &dyn cpu::Beyond,
) -> Result<(), Trouble> {
    cpu.regs.rip = instruction.next_ip();
    let done = execute::execute(&mut Step { instruction, cpu, memory, beyond });
    match &done {
        Err(Trouble::Raised(Exception { kind: Kind::Trap, .. })) | Ok(()) => {
            cpu.set_flag(cpu::flag::RESUME, false);
        }
        // Of a fault nothing is seen but the fault.
        Err(_) => cpu.regs.rip = instruction.ip(),
    }
    done
}

/// Delivers what was raised, and gives the vCPU its new state.
fn commit(
    vcpu: &VcpuFd,
    cpu: &mut Cpu,
    memory: &dyn Linear,
    raised: Option<Exception>,
) -> Result<Delivery, Why> {
    let single_step = raised.is_none() && cpu.flag(cpu::flag::TRAP);
    let raised = raised.or_else(|| single_step.then(|| Exception::trap(exception::DEBUG)));
    match raised {
        Some(exception) => match deliver::deliver(vcpu, cpu, memory, exception)? {
            Delivery::Done => vcpu::store(vcpu, cpu).map(|()| Delivery::Done),
            Delivery::Kvm => Ok(Delivery::Kvm),
        },
        None => vcpu::store(vcpu, cpu).map(|()| Delivery::Done),
    }
}

impl Why {
    fn of(self, instruction: Option<&Instruction>) -> Refusal {
        let mnemonic = instruction.map(|instruction| counts::name(instruction.mnemonic()));
        Refusal { mnemonic, why: self }
    }
}

impl From<Trouble> for Why {
    fn from(trouble: Trouble) -> Why {
        match trouble {
            Trouble::Absent(gpa) => Why::Absent(gpa),
            Trouble::State(what) => Why::State(what),
            Trouble::Unknown | Trouble::Raised(_) => Why::Unknown,
        }
    }
}
