//! The state of a vCPU that registers do not hold, and the way back for those that do.
#![allow(
    unsafe_code,
    reason = "KVM_SET_XSAVE reads as much as the vCPU has; 4096 bytes of it are given"
)]

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_xsave};
use kvm_ioctls::VcpuFd;

use super::Why;
use super::cpu::{Beyond, Cpu};
use super::linear::Trouble;

/// CR4.PGE: KVM drops every translation of a vCPU for which it changes.
const CR4_PGE: u64 = 1 << 7;

impl Beyond for VcpuFd {
    fn xsave(&self) -> Result<Box<kvm_xsave>, Trouble> {
        self.get_xsave().map(Box::new).map_err(|_| Trouble::State("KVM does not tell XSAVE state"))
    }

    fn set_xsave(&self, state: &kvm_xsave) -> Result<(), Trouble> {
        // SAFETY: the state of a guest without components that are enabled by request (AMX), of which this monitor's
        // guests have none, has at most the 4096 bytes of `kvm_xsave`.
        unsafe { VcpuFd::set_xsave(self, state) }
            .map_err(|_| Trouble::State("KVM does not take XSAVE state"))
    }

    fn xcr0(&self) -> Result<u64, Trouble> {
        let none = Trouble::State("KVM does not tell XCR0");
        let all = self.get_xcrs().map_err(|_| none)?;
        let mut xcrs = all.xcrs[..all.nr_xcrs as usize].iter();
        xcrs.find(|xcr| xcr.xcr == 0).map(|xcr| xcr.value).ok_or(none)
    }

    fn set_xcr0(&self, value: u64) -> Result<(), Trouble> {
        let refused = |_| Trouble::State("KVM does not take XCR0");
        let mut all = self.get_xcrs().map_err(refused)?;
        all.xcrs[0].xcr = 0;
        all.xcrs[0].value = value;
        all.nr_xcrs = 1;
        self.set_xcrs(&all).map_err(refused)
    }

    fn msr(&self, index: u32) -> Result<u64, Trouble> {
        let none = Trouble::State("KVM does not tell a model-specific register");
        let mut msrs = one(index, 0).ok_or(none)?;
        match self.get_msrs(&mut msrs) {
            Ok(1) => Ok(msrs.as_slice()[0].data),
            _ => Err(none),
        }
    }

    fn set_msr(&self, index: u32, value: u64) -> Result<(), Trouble> {
        let none = Trouble::State("KVM does not take a model-specific register");
        let msrs = one(index, value).ok_or(none)?;
        match self.set_msrs(&msrs) {
            Ok(1) => Ok(()),
            _ => Err(none),
        }
    }
}

fn one(index: u32, data: u64) -> Option<Msrs> {
    Msrs::from_entries(&[kvm_msr_entry { index, data, ..kvm_msr_entry::default() }]).ok()
}

/// Gives KVM the registers. It forgets the exception with which it would have answered the instruction.
pub(super) fn store(vcpu: &VcpuFd, cpu: &Cpu) -> Result<(), Why> {
    let refused = |_| Why::State("KVM does not take its registers");
    if cpu.forget_translations {
        let mut other = cpu.sregs;
        other.cr4 ^= CR4_PGE;
        vcpu.set_sregs(&other).map_err(refused)?;
    }
    if cpu.special_changed || cpu.forget_translations {
        vcpu.set_sregs(&cpu.sregs).map_err(refused)?;
    }
    vcpu.set_regs(&cpu.regs).map_err(refused)
}
