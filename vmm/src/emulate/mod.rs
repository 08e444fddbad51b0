//! Instructions that KVM has no emulation for.
//!
//! Where KVM has VMX or SVM below it, the processor runs a guest's every instruction, and nothing of this is used. Where it
//! has not, it emulates the guest's ring 0, and stops at what its emulator does not know (`KVM_EXIT_INTERNAL_ERROR`,
//! suberror 1). [`assist`] then carries that one instruction out, or raises the exception that the processor would raise,
//! and the guest goes on.
//!
//! ```text
//!   mod.rs        one instruction: fetch, decode, carry out, commit      vcpu.rs      state to and from KVM
//!   interpret.rs  ring 0, one after the other; code.rs, what was decoded deliver.rs   exceptions, software interrupts
//!   step.rs       its operands                                           counts.rs    how often which
//!   execute/      what each does, by family
//!   cpu.rs        general, segment and control registers
//!   area.rs       x87, SSE and extended state
//!   linear.rs     memory by linear address: paging.rs, to a guest-physical one; tlb.rs, translations that are kept;
//!                 physical.rs, its place in the window                   exception.rs vectors and codes
//!   syscall.rs    a SYSCALL of which KVM has done one half               profile.rs   where the time goes
//!   beside.rs     registers to and from KVM without a call               entries.rs   where a kernel is entered
//! ```
//!
//! # How it is like the processor
//! An instruction is decoded by `iced-x86`. Its operands are reached through the guest's own page tables, with permissions,
//! accessed and dirty bits; under them it is the guest's window that is touched, so the memory service is asked for pages as
//! it is by KVM. Nothing is committed before everything that can fault has been done. Each instruction's test lets the host's
//! processor do the same and compares registers, flags and memory.

mod area;
pub mod beside;
mod code;
mod counts;
mod cpu;
mod deliver;
mod entries;
mod exception;
mod execute;
mod interpret;
mod linear;
mod paging;
mod physical;
mod profile;
mod step;
mod syscall;
#[cfg(test)]
mod tests;
mod tlb;
mod vcpu;

use std::fmt;

use iced_x86::Instruction;
use kvm_ioctls::VcpuFd;

use crate::config::Feature;
use crate::ram::Ram;

pub use counts::{Counts, Emulated};
pub use entries::entries;
pub use interpret::{Came, Interpreter, Left};
pub use profile::{Profile, ProfileReport, Profiler};

use cpu::Cpu;
use deliver::{Delivery, deliver};
use exception::{Exception, Kind};
use linear::{Linear, Trouble};
use paging::Regime;
use physical::Physical;
use step::Step;
use tlb::{Tlb, Translations};
use vcpu::Hosted;

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

/// What the vCPUs of a machine share of this.
#[derive(Debug, Default)]
pub struct Shared {
    /// What CPUID does not offer them.
    pub hidden: Vec<Feature>,
    /// What was done for them.
    pub counts: Counts,
}

/// Carries out the instruction at which `fd` stands, and counts it.
///
/// # Errors
/// It is not known, or its operands are not in RAM: nothing is changed.
pub fn assist(fd: &VcpuFd, ram: &dyn Ram, shared: &Shared) -> Result<(), Refusal> {
    let mut cpu = registers(fd).map_err(|why| why.of(None))?;
    let vcpu = Hosted::new(fd, &shared.hidden);
    let translations = Translations::few();
    let regime = Regime::of(&cpu.sregs, cpu.regs.rflags);
    let memory = Tlb::new(Physical::of(ram), regime, &translations);
    let bitness = cpu.bitness();
    let base = if bitness == 64 { 0 } else { cpu.sregs.cs.base };
    let at = base.wrapping_add(cpu.regs.rip);
    let fetched = code::fetch(bitness, cpu.regs.rip, at, &memory);
    let done = fetched.and_then(|instruction| {
        carry_out(&instruction, &mut cpu, &memory, &vcpu)?;
        Ok(())
    });
    let instruction = fetched.ok();
    let mut raised = match done {
        Ok(()) => None,
        Err(Trouble::Raised(exception)) => Some(exception),
        Err(trouble) => return Err(Why::from(trouble).of(instruction.as_ref())),
    };
    if raised.is_none() && cpu.flag(cpu::flag::TRAP) {
        raised = Some(Exception::trap(exception::DEBUG));
    }
    let given = match raised {
        Some(exception) => deliver(&vcpu, &mut cpu, &memory, exception),
        None => Ok(Delivery::Done),
    };
    let stored = given.and_then(|delivery| match delivery {
        Delivery::Done => vcpu.store(&cpu),
        Delivery::Kvm => Ok(()),
    });
    stored.map_err(|why| why.of(instruction.as_ref()))?;
    if let Some(instruction) = instruction {
        shared.counts.assisted(instruction.mnemonic());
    }
    Ok(())
}

fn registers(fd: &VcpuFd) -> Result<Cpu, Why> {
    let untold = |_| Why::State("KVM does not tell its registers");
    Ok(Cpu::new(fd.get_regs().map_err(untold)?, fd.get_sregs().map_err(untold)?))
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
            Trouble::Unknown | Trouble::Table | Trouble::Raised(_) => Why::Unknown,
        }
    }
}
