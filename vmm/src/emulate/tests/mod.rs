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

use kvm_bindings::{kvm_sregs, kvm_xsave};

use super::cpu::{Beyond, Cpu, control};
use super::linear::Trouble;

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

impl Beyond for Nothing {
    fn xsave(&self) -> Result<Box<kvm_xsave>, Trouble> {
        Err(Trouble::State("extended state"))
    }
    fn set_xsave(&self, _: &kvm_xsave) -> Result<(), Trouble> {
        Err(Trouble::State("extended state"))
    }
    fn xcr0(&self) -> Result<u64, Trouble> {
        Err(Trouble::State("XCR0"))
    }
    fn set_xcr0(&self, _: u64) -> Result<(), Trouble> {
        Err(Trouble::State("XCR0"))
    }
    fn msr(&self, _: u32) -> Result<u64, Trouble> {
        Err(Trouble::State("a model-specific register"))
    }
    fn cpuid(&self, _: u32, _: u32) -> Result<[u32; 4], Trouble> {
        Err(Trouble::State("nothing beyond"))
    }
    fn tsc(&self) -> Result<u64, Trouble> {
        Err(Trouble::State("nothing beyond"))
    }
    fn exchange_kernel_gs(&self, _: u64) -> Result<u64, Trouble> {
        Err(Trouble::State("nothing beyond"))
    }
}
