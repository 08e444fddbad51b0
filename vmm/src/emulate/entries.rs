//! Where a guest's kernel is entered.

use iced_x86::{Code, FlowControl};
use kvm_ioctls::VcpuFd;

use crate::ram::Ram;

use super::cpu::{Beyond, Cpu};
use super::exception::PAGE_FAULT;
use super::linear::Linear;
use super::paging::Regime;
use super::physical::Physical;
use super::syscall::MSR_LSTAR;
use super::tlb::{Tlb, Translations};
use super::vcpu::Hosted;
use super::{Refusal, Shared, Why, code, deliver, registers};

/// Two vectors that are devices' or nobody's, so that their handlers are alike.
const DEVICES: [u8; 2] = [0x30, 0x31];
/// Instructions of a handler before it joins the others.
const STUB: usize = 4;

/// The entries of a kernel that has system calls: its handlers of page faults and of `timer`, and where those of devices meet, if
/// they do. Nothing while one of the first two is not there.
///
/// # Errors
/// KVM does not tell what it takes to know.
pub fn entries(
    fd: &VcpuFd,
    ram: &dyn Ram,
    shared: &Shared,
    timer: u8,
) -> Result<Option<Vec<u64>>, Refusal> {
    let find = || {
        let cpu = registers(fd)?;
        let vcpu = Hosted::new(fd, &shared.hidden);
        if vcpu.msr(MSR_LSTAR)? == 0 || cpu.bitness() != 64 {
            return Ok(None);
        }
        let translations = Translations::few();
        // The tables of descriptors are the kernel's, whoever runs.
        let mut regime = Regime::of(&cpu.sregs, cpu.regs.rflags);
        regime.user = false;
        let memory = Tlb::new(Physical::of(ram), regime, &translations);
        let handler = |vector| deliver::gate(&cpu, &memory, vector);
        let (Some(fault), Some(timer)) = (handler(PAGE_FAULT)?, handler(timer)?) else {
            return Ok(None);
        };
        let mut entries = vec![fault.handler, timer.handler];
        entries.extend(crossing(&cpu, &memory));
        Ok(Some(entries))
    };
    find().map_err(|why: Why| why.of(None))
}

/// Where the handlers of [`DEVICES`] meet: each says which it is, and jumps to what is common to them.
pub(super) fn crossing(cpu: &Cpu, memory: &dyn Linear) -> Option<u64> {
    let [first, second] = DEVICES.map(|vector| {
        let mut rip = deliver::gate(cpu, memory, vector).ok()??.handler;
        for _ in 0..STUB {
            let instruction = code::fetch(64, rip, rip, memory).ok()?;
            match (instruction.code(), instruction.flow_control()) {
                (Code::Jmp_rel8_64 | Code::Jmp_rel32_64, _) => {
                    return Some(instruction.near_branch_target());
                }
                (_, FlowControl::Next) => rip = instruction.next_ip(),
                _ => return None,
            }
        }
        None
    });
    first.filter(|_| first == second)
}
