//! Instructions here and on this machine's processor: registers, flags and memory have to be the same afterwards.

mod entry;
mod extended;
mod faults;
mod integer;
mod native;
mod paging;
mod strings;
mod system;
mod variants;

use kvm_bindings::kvm_sregs;

use super::cpu::{Beyond, Cpu, control};

/// The registers of 64-bit code at `cpl`, under which everything is switched on.
fn sregs(cpl: u8) -> kvm_sregs {
    let mut sregs = kvm_sregs { cr0: 0x8000_0023, efer: control::EFER_LMA, ..kvm_sregs::default() };
    sregs.cr4 = control::CR4_OSFXSR | control::CR4_OSXSAVE | control::CR4_FSGSBASE;
    sregs.cs.l = 1;
    sregs.ss.dpl = cpl;
    sregs
}

fn cpu(cpl: u8) -> Cpu {
    Cpu::new(Default::default(), sregs(cpl))
}

/// A vCPU of which nothing but general registers is asked.
struct Nothing;

impl Beyond for Nothing {}
