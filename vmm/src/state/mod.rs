//! All that a machine is beside its memory: saved, checked, restored.
//!
//! ```text
//!   machine.rs       the whole, as bytes          fingerprint.rs   whether it fits a machine
//!   vcpu.rs          a vCPU; msrs.rs, its model-specific registers
//!   vm.rs            interrupt controllers, timer, clock
//!   raw.rs           KVM's structures as text     sealed.rs        what is written, with a checksum
//! ```
//!
//! # Time
//! A guest does not see that it was saved: its time stamp counters, its paravirtual clock, the timer and the timers of the
//! local APICs go on where they were, so its monotonic time never jumps, and never runs backwards. Its idea of the time of day is
//! late by the pause until it reads the real-time clock, which is the host's, or asks the network. A guest with the
//! paravirtual clock is told that it was stopped, so that its watchdogs do not bark.
//!
//! # What is not lost
//! An interrupt that a device has raised, and that no vCPU has taken, is in a controller, or on its way there through an
//! event: so every device whose reason still stands raises it again after the restore. A spurious interrupt harms no driver,
//! a lost one does.

mod fingerprint;
mod machine;
mod msrs;
mod raw;
mod sealed;
mod vcpu;
mod vm;

pub use fingerprint::{DeviceMemory, Extent, Fingerprint, Leaf, NamedShape};
pub use machine::{MachineState, Platform, SavedDevice, StateError, VERSION};
pub use sealed::{checksum, seal, unseal};
pub use vcpu::VcpuState;
pub use vm::VmState;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kvm_ioctls::VcpuFd;

use crate::kvm::{KvmError, Vm};
use crate::vcpu::Gate;

use vcpu::{Extras, tsc_offset};

/// Why a machine at rest is not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A vCPU's thread did not tell in time, or the machine has ended.
    #[error("a vCPU did not tell its state in time")]
    Late,
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// What a vCPU's thread says, once it does.
type Told = Option<Result<VcpuState, KvmError>>;

/// Asks KVM for the state of `vm` and of its vCPUs, which wait at `gate`, before `deadline`.
///
/// # Errors
/// [`SaveError`]: nothing is changed.
pub fn save(
    vm: &Vm,
    gate: &Gate,
    vcpus: u8,
    has_irqchip: bool,
    deadline: Instant,
) -> Result<(VmState, Vec<VcpuState>), SaveError> {
    let kvm = crate::kvm::open()?;
    let (extras, msrs) = (Extras::of(vm.fd(), has_irqchip), msrs::known(&kvm)?);
    let told: Arc<Mutex<Vec<Told>>> = Arc::new(Mutex::new((0..vcpus).map(|_| None).collect()));
    let task = {
        let told = Arc::clone(&told);
        move |index: u8, vcpu: &VcpuFd| {
            let state = VcpuState::of(vcpu, extras, &msrs);
            told.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(index)] = Some(state);
        }
    };
    if !gate.each(deadline, Arc::new(task)) {
        return Err(SaveError::Late);
    }
    let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    let vcpus = told.into_iter().map(|state| Ok(state.ok_or(SaveError::Late)??));
    let vcpus = vcpus.collect::<Result<_, SaveError>>()?;
    // After the vCPUs: the timer of one that was asked may have raised something.
    Ok((VmState::of(vm.fd(), has_irqchip)?, vcpus))
}

/// Makes `vm` and `vcpus`, which have their CPUID and have never run, what `state` says.
///
/// # Errors
/// [`KvmError`]: both are to be thrown away.
pub fn restore(
    state: &MachineState,
    vm: &Vm,
    vcpus: &[&VcpuFd],
    has_irqchip: bool,
) -> Result<(), KvmError> {
    let extras = Extras::of(vm.fd(), has_irqchip);
    let mut boot: Option<(&VcpuState, Option<u64>)> = None;
    for (saved, vcpu) in state.vcpus.iter().zip(vcpus) {
        saved.restore(vcpu, extras, boot)?;
        boot = boot.or_else(|| Some((saved, tsc_offset(vcpu))));
    }
    state.vm.restore(vm.fd())?;
    for vcpu in vcpus {
        // Refused where the guest does not use that clock.
        let _ = vcpu.kvmclock_ctrl();
    }
    Ok(())
}
