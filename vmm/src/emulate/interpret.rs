//! Ring 0 in this process, where KVM would emulate it.
//!
//! A KVM that has emulated one instruction of 64-bit ring 0 emulates all of it, at some 0.7 us each: it fetches, decodes and
//! translates anew every time, and writes everything back. Here decoded instructions and translations are kept, so the same
//! code runs at ten times the speed. KVM keeps what is its own: interrupts, devices, control registers, model-specific
//! registers. An instruction that is about those is KVM's to carry out ([`Left::One`]); so is ring 3, which runs on the
//! processor ([`Left::Guest`]). Of the registers that are KVM's, it has from here what every tick writes: the end of an
//! interrupt, and when the timer rings next.
//!
//! # When the guest is looked at
//! Interrupts arrive in KVM. So a burst ends after [`BURST`] where interrupts are on, and after ten times that where they are
//! off, for the sake of those who want the vCPU to stop.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iced_x86::{Instruction, Mnemonic};
use kvm_ioctls::VcpuFd;

use crate::ram::Ram;

use super::code::Code;
use super::counts::name;
use super::cpu::{Beyond, Cpu, flag};
use super::deliver::{Delivery, deliver};
use super::exception::Kind;
use super::linear::{Linear, Trouble};
use super::paging::Regime;
use super::physical::Physical;
use super::profile::Profiler;
use super::syscall::finish;
use super::tlb::{Tlb, Translations};
use super::vcpu::Hosted;
use super::{Refusal, Shared, Why, beside, carry_out};

/// How long interrupts may wait.
const BURST: Duration = Duration::from_micros(400);
/// Instructions between two looks at the clock.
const STRIDE: u32 = 256;
/// The opcode of HLT.
const HLT: u64 = 0xf4;

/// What KVM is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Run the guest.
    Guest,
    /// Carry out one instruction, or begin one interrupt.
    One,
}

/// How the vCPU came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// To a breakpoint at one of the kernel's handlers.
    ToBreakpoint,
    /// Because somebody wanted it to.
    Otherwise,
}

/// Why KVM has to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reason {
    /// An instruction is its to carry out.
    Instruction(Mnemonic),
    /// It may have interrupts.
    Clock,
    /// An exception, or something that it was about to deliver.
    Event,
}

/// What a vCPU keeps between its stays in ring 0.
pub struct Interpreter {
    shared: Arc<Shared>,
    code: Code,
    translations: Translations,
    instructions: u64,
    time: Duration,
    left: HashMap<Reason, u64>,
}

impl std::fmt::Debug for Interpreter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interpreter").field("instructions", &self.instructions).finish()
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        let named = |(reason, count): (&Reason, &u64)| match reason {
            Reason::Instruction(mnemonic) => (name(*mnemonic), *count),
            Reason::Clock => ("(interrupts)".into(), *count),
            Reason::Event => ("(events)".into(), *count),
        };
        let left = self.left.iter().map(named);
        self.shared.counts.interpreted(self.instructions, self.time, left);
    }
}

impl Interpreter {
    /// One that has nothing in it.
    pub fn new(shared: Arc<Shared>) -> Interpreter {
        Interpreter {
            shared,
            code: Code::default(),
            translations: Translations::default(),
            instructions: 0,
            time: Duration::ZERO,
            left: HashMap::new(),
        }
    }

    /// Instructions carried out so far.
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Runs the vCPU, which `KVM_RUN` has just left, while it is in ring 0 and 64-bit code, and KVM is not needed.
    ///
    /// # Errors
    /// KVM does not tell or take registers.
    pub fn run(
        &mut self,
        fd: &mut VcpuFd,
        ram: &dyn Ram,
        came: Came,
        profiler: Option<&mut Profiler>,
    ) -> Result<Left, Refusal> {
        self.burst(fd, ram, came, profiler).map_err(|why| why.of(None))
    }

    fn burst(
        &mut self,
        fd: &mut VcpuFd,
        ram: &dyn Ram,
        came: Came,
        mut profiler: Option<&mut Profiler>,
    ) -> Result<Left, Why> {
        let begin = Instant::now();
        let Some(mut cpu) = beside::take(fd)? else {
            *self.left.entry(Reason::Event).or_default() += 1;
            return Ok(Left::One);
        };
        // Who single-steps has its traps from KVM.
        if cpu.cpl() != 0 || cpu.bitness() != 64 || cpu.flag(flag::TRAP) {
            return Ok(Left::Guest);
        }
        let shared = Arc::clone(&self.shared);
        let vcpu = Hosted::new(fd, &shared.hidden);
        let regime = Regime::of(&cpu.sregs, cpu.regs.rflags);
        let memory = Tlb::new(Physical::of(ram), regime, &self.translations).guarding_tables();
        let (before, special) = (cpu.regs, cpu.sregs);
        if came == Came::ToBreakpoint {
            finish(&mut cpu, &memory, &vcpu)?;
        }
        let (left, reason) = loop {
            match stride(&mut self.code, &mut cpu, &memory, &vcpu, &mut self.instructions) {
                Ok(()) => {}
                Err(Stop::Leave(left, mnemonic)) => break (left, Reason::Instruction(mnemonic)),
                Err(Stop::Trouble(Trouble::Raised(exception), _)) => {
                    if deliver(&vcpu, &mut cpu, &memory, exception)? == Delivery::Kvm {
                        *self.left.entry(Reason::Event).or_default() += 1;
                        return Ok(Left::One);
                    }
                }
                // Whatever it is, KVM may know it; if it does not, it says so.
                Err(Stop::Trouble(_, mnemonic)) => {
                    break (Left::One, Reason::Instruction(mnemonic));
                }
            }
            if let Some(profiler) = &mut profiler {
                profiler.look(0, cpu.regs.rip);
            }
            let longest = if cpu.flag(flag::INTERRUPT) { BURST } else { 10 * BURST };
            if begin.elapsed() > longest {
                break (Left::One, Reason::Clock);
            }
        };
        *self.left.entry(reason).or_default() += 1;
        // An exception that was delivered and a string that came halfway count as no instruction, and change registers.
        if cpu.regs != before {
            // A kernel's GS base comes and goes within one burst, mostly.
            cpu.special_changed &= cpu.sregs != special;
            vcpu.store_special(&cpu)?;
            beside::give(fd, &cpu);
        }
        self.time += begin.elapsed();
        Ok(left)
    }
}

/// Why a stride ends early, and at which instruction.
enum Stop {
    Leave(Left, Mnemonic),
    Trouble(Trouble, Mnemonic),
}

/// Some instructions.
#[inline]
fn stride(
    code: &mut Code,
    cpu: &mut Cpu,
    memory: &Tlb<'_>,
    beyond: &dyn Beyond,
    done: &mut u64,
) -> Result<(), Stop> {
    for _ in 0..STRIDE {
        let instruction = code
            .at(cpu.regs.rip, memory)
            .map_err(|trouble| Stop::Trouble(trouble, Mnemonic::INVALID))?;
        let mnemonic = instruction.mnemonic();
        if let Some(left) = is_kvms(instruction, cpu.regs.rsp, memory) {
            return Err(Stop::Leave(left, mnemonic));
        }
        match carry_out(instruction, cpu, memory, beyond) {
            Ok(()) => *done += 1,
            Err(trouble) => {
                if matches!(trouble, Trouble::Raised(exception) if exception.kind == Kind::Trap) {
                    *done += 1;
                }
                return Err(Stop::Trouble(trouble, mnemonic));
            }
        }
        if matches!(mnemonic, Mnemonic::Stac | Mnemonic::Clac | Mnemonic::Popfq | Mnemonic::Iretq) {
            memory.set_ac(cpu.flag(flag::ALIGNMENT));
            if cpu.flag(flag::TRAP) {
                return Err(Stop::Leave(Left::One, mnemonic));
            }
        }
    }
    Ok(())
}

/// Whether it is about what KVM keeps: the way to ring 3, and sleep.
#[inline]
fn is_kvms(instruction: &Instruction, rsp: u64, memory: &Tlb<'_>) -> Option<Left> {
    match instruction.mnemonic() {
        Mnemonic::Sysretq | Mnemonic::Sysret | Mnemonic::Hlt => Some(Left::Guest),
        // No interrupt may come between STI and HLT, or nobody wakes the vCPU: KVM carries out both.
        Mnemonic::Sti if memory.load(instruction.next_ip(), 1) == Ok(HLT) => Some(Left::Guest),
        // To ring 3: the selector above RIP says so.
        Mnemonic::Iretq if memory.load(rsp.wrapping_add(8), 8).is_ok_and(|cs| cs & 3 != 0) => {
            Some(Left::Guest)
        }
        _ => None,
    }
}
