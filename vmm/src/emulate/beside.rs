//! Registers beside `kvm_run`, where KVM puts them as it leaves the guest, and takes them from as it enters.
//!
//! A call for registers costs microseconds where KVM has neither VMX nor SVM, and a burst in ring 0 would make five. With
//! `KVM_CAP_SYNC_REGS` (Linux Documentation/virt/kvm/api.rst, 5; since 4.17, which is older than what the memory service
//! needs) most of them are saved. What is given to KVM here arrives with the next `KVM_RUN`: whoever asks KVM before that has
//! to [`settle`] first.
//!
//! Segments and control registers are asked for all the same. With those from here a guest ran on a wrong base of GS, once it had a
//! ring 3, on a KVM without VMX and SVM: that may leave the base in the processor until `KVM_RUN` has ended.

use kvm_ioctls::{SyncReg, VcpuFd};

use super::cpu::Cpu;
use super::{Refusal, Why};

/// Has KVM put them there from now on.
pub fn begin(fd: &mut VcpuFd) {
    fd.set_sync_valid_reg(SyncReg::Register);
    fd.set_sync_valid_reg(SyncReg::VcpuEvents);
}

/// The vCPU as KVM has left it, if nothing but `KVM_RUN` was called since; nothing if something is on its way to the guest,
/// which comes first.
///
/// # Errors
/// KVM does not tell its registers.
pub(super) fn take(fd: &mut VcpuFd) -> Result<Option<Cpu>, Why> {
    let told = fd.sync_regs_mut();
    let events = &told.events;
    let on_its_way = events.exception.injected
        | events.exception.pending
        | events.interrupt.injected
        | events.nmi.injected
        | events.nmi.pending;
    if on_its_way != 0 {
        return Ok(None);
    }
    let regs = told.regs;
    let sregs = fd.get_sregs().map_err(|_| Why::State("KVM does not tell its registers"))?;
    Ok(Some(Cpu::new(regs, sregs)))
}

/// Gives KVM the general registers.
pub(super) fn give(fd: &mut VcpuFd, cpu: &Cpu) {
    fd.sync_regs_mut().regs = cpu.regs;
    fd.set_sync_dirty_reg(SyncReg::Register);
}

/// Sees to it that KVM has what was given.
///
/// # Errors
/// KVM does not take it.
pub fn settle(fd: &mut VcpuFd) -> Result<(), Refusal> {
    let refused = |_| Why::State("KVM does not take its registers").of(None);
    if fd.get_kvm_run().kvm_dirty_regs & SyncReg::Register as u64 == 0 {
        return Ok(());
    }
    fd.clear_sync_dirty_reg(SyncReg::Register);
    let regs = fd.sync_regs_mut().regs;
    fd.set_regs(&regs).map_err(refused)
}
