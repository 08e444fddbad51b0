//! The hypervisor: opening it, making a VM, and telling a vCPU what it is.

mod cpuid;
mod msrs;
mod vm;

use std::io;

use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::errno;

pub use cpuid::CpuPlan;
pub use msrs::set_boot_msrs;
pub use vm::{Slot, Vm};

/// Why the hypervisor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is none, or no right to it.
    #[error("cannot open /dev/kvm ({0}): {advice}", advice = advice(.0))]
    Open(io::Error),
    /// It is not what this monitor needs.
    #[error("this kernel's KVM lacks {0}: use Linux 6.4 or later")]
    Lacks(&'static str),
    /// It refuses the value of a model-specific register.
    #[error(
        "this KVM does not take {value:#x} for the model-specific register {index:#x}: restore on a host like the one it was saved on"
    )]
    Msr {
        /// Which.
        index: u32,
        /// The value.
        value: u64,
    },
    /// A call failed.
    #[error("{call} failed: {source}")]
    Call {
        /// The ioctl.
        call: &'static str,
        /// What it said.
        source: errno::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "enable virtualisation in the firmware or ask for nested virtualisation, then load the \
             module kvm_intel or kvm_amd"
        }
        io::ErrorKind::PermissionDenied => {
            "run as root, or add this user to the group kvm and log in again"
        }
        _ => "check that the KVM module is loaded and not in use by another hypervisor",
    }
}

/// Names the ioctl that failed.
pub(crate) fn failed(call: &'static str) -> impl FnOnce(errno::Error) -> KvmError {
    move |source| KvmError::Call { call, source }
}

/// What every machine needs of KVM.
const NEEDED: [(Cap, &str); 3] = [
    (Cap::UserMemory, "user memory slots"),
    (Cap::ImmediateExit, "immediate exits"),
    (Cap::ExtCpuid, "CPUID tables"),
];

/// Opens the hypervisor.
///
/// # Errors
/// [`KvmError::Open`] with advice, [`KvmError::Lacks`] for one that is too old.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|e| KvmError::Open(e.into()))?;
    match NEEDED.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Lacks(name)),
        None => Ok(kvm),
    }
}
