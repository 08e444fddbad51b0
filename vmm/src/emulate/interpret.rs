//! Ring 0 in this process, where KVM would emulate it.
//!
//! A KVM that has emulated one instruction of 64-bit ring 0 emulates all of it, at some 0.7 us each: it fetches, decodes and
//! translates anew every time, and writes everything back. Here decoded instructions and translations are kept, so the same
//! code runs at ten times the speed. KVM keeps what is its own: interrupts, devices, control registers, model-specific
//! registers. An instruction that is about those is KVM's to carry out ([`Left::One`]); so is ring 3, which runs on the
//! processor ([`Left::Guest`]).
//!
//! # When the guest is looked at
//! Interrupts arrive in KVM. So a burst ends after [`BURST`] where interrupts are on, and after ten times that where they are
//! off, for the sake of those who want the vCPU to stop.

use std::time::{Duration, Instant};

use iced_x86::{Code as Op, Mnemonic};
use kvm_ioctls::VcpuFd;

use crate::ram::Ram;

use super::code::Code;
use super::cpu::{Beyond, Cpu, flag};
use super::deliver::{Delivery, deliver};
use super::exception::Kind;
use super::linear::{Linear, Trouble};
use super::paging::Regime;
use super::physical::Physical;
use super::tlb::{Tlb, Translations};
use super::vcpu::store;
use super::{Refusal, Why, carry_out};

/// How long interrupts may wait.
const BURST: Duration = Duration::from_micros(400);
/// The opcode of HLT.
const HLT: u64 = 0xf4;
/// Instructions between two looks at the clock.
const STRIDE: u32 = 256;

/// What KVM is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Run the guest.
    Guest,
    /// Carry out one instruction, or begin one interrupt.
    One,
}

/// What a vCPU keeps between its stays in ring 0.
pub struct Interpreter {
    code: Code,
    translations: Translations,
    /// Instructions carried out.
    instructions: u64,
    bursts: u64, time: Duration,
    why: std::collections::HashMap<String, u64>,
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        eprintln!("XX instr {} bursts {} time {:?}", self.instructions, self.bursts, self.time);
        let mut v: Vec<_> = self.why.iter().collect();
        v.sort_by_key(|e| std::cmp::Reverse(*e.1));
        for (k, n) in v.iter().take(40) { eprintln!("XX {n} {k}"); }
    }
}
impl std::fmt::Debug for Interpreter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interpreter").field("instructions", &self.instructions).finish()
    }
}

impl Default for Interpreter {
    fn default() -> Self {
        Interpreter {
            code: Code::default(),
            translations: Translations::default(),
            instructions: 0, bursts: 0, time: Duration::ZERO, why: Default::default(),
        }
    }
}

impl Interpreter {
    /// Instructions carried out so far.
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Runs `vcpu` while it is in ring 0 and 64-bit code, and KVM is not needed.
    ///
    /// # Errors
    /// KVM does not tell or take registers.
    pub fn run(&mut self, vcpu: &VcpuFd, ram: &dyn Ram) -> Result<Left, Refusal> {
        let unread = |_| Why::State("KVM does not tell its registers").of(None);
        let regs = vcpu.get_regs().map_err(unread)?;
        let sregs = vcpu.get_sregs().map_err(unread)?;
        let mut cpu = Cpu::new(regs, sregs);
        if cpu.cpl() != 0 || cpu.bitness() != 64 || cpu.flag(flag::TRAP) {
            return Ok(Left::Guest);
        }
        // Something is on its way to the guest, and comes first.
        let events = vcpu.get_vcpu_events().map_err(unread)?;
        let on_its_way = events.exception.injected
            | events.exception.pending
            | events.interrupt.injected
            | events.nmi.injected
            | events.nmi.pending;
        if on_its_way != 0 {
            return Ok(Left::One);
        }
        // KVM has run the guest, whose page tables may be others now.
        self.translations.flush();
        let regime = Regime::of(&cpu.sregs, cpu.regs.rflags);
        let memory = Tlb::new(Physical::of(ram), regime, &self.translations);
        let begin = Instant::now();
        let before = self.instructions;
        let left = loop {
            match stride(&mut self.code, &mut cpu, &memory, vcpu, &mut self.instructions) {
                Ok(()) => {}
                Err(Stop::Leave(left)) => break left,
                Err(Stop::Trouble(Trouble::Raised(exception))) => {
                    let delivery = deliver(vcpu, &mut cpu, &memory, exception);
                    if delivery.map_err(|why| why.of(None))? == Delivery::Kvm {
                        return Ok(Left::One);
                    }
                }
                // Whatever it is, KVM may know it; if it does not, it says so.
                Err(Stop::Trouble(_)) => break Left::One,
            }
            let longest = if cpu.flag(flag::INTERRUPT) { BURST } else { 10 * BURST };
            if begin.elapsed() > longest {
                break Left::One;
            }
        };
        self.bursts += 1; self.time += begin.elapsed();
        let m = self.code.at(cpu.regs.rip, &memory).map(|i| format!("{left:?} {:?}", i.code())).unwrap_or_default();
        let timed = begin.elapsed() > BURST;
        *self.why.entry(if timed { "timed".into() } else { m }).or_default() += 1;
        if self.instructions != before {
            store(vcpu, &cpu).map_err(|why| why.of(None))?;
        }
        Ok(left)
    }
}

/// Why a stride ends early.
enum Stop {
    Leave(Left),
    Trouble(Trouble),
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
        let instruction = code.at(cpu.regs.rip, memory).map_err(Stop::Trouble)?;
        if let Some(left) = is_kvms(instruction, memory) {
            return Err(Stop::Leave(left));
        }
        let mnemonic = instruction.mnemonic();
        let carried = carry_out(instruction, cpu, memory, beyond);
        match carried {
            Ok(()) => *done += 1,
            Err(trouble) => {
                if matches!(trouble, Trouble::Raised(exception) if exception.kind == Kind::Trap) {
                    *done += 1;
                }
                return Err(Stop::Trouble(trouble));
            }
        }
        if matches!(mnemonic, Mnemonic::Stac | Mnemonic::Clac | Mnemonic::Popfq) {
            memory.set_ac(cpu.flag(flag::ALIGNMENT));
            // Who single-steps gets its traps from KVM.
            if cpu.flag(flag::TRAP) {
                return Err(Stop::Leave(Left::One));
            }
        }
    }
    Ok(())
}

/// Whether it is about what KVM keeps.
#[inline]
fn is_kvms(instruction: &iced_x86::Instruction, memory: &Tlb<'_>) -> Option<Left> {
    match instruction.mnemonic() {
        Mnemonic::Sysretq | Mnemonic::Sysret | Mnemonic::Hlt => Some(Left::Guest),
        // No interrupt may come between STI and HLT, or nobody wakes the vCPU: KVM carries out both.
        Mnemonic::Sti if memory.load(instruction.next_ip(), 1) == Ok(HLT) => Some(Left::Guest),
        _ => match instruction.code() {
            Op::Iretq => Some(Left::Guest),
            _ => None,
        },
    }
}
