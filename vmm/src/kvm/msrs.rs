//! Model-specific registers as firmware would leave them.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{KvmError, failed};

/// IA32_MISC_ENABLE (SDM vol. 4, table 2-2): bit 0, fast strings.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// IA32_MTRR_DEF_TYPE (SDM vol. 3A, 12.11.2.1): MTRRs on (bit 11), all memory write-back (6).
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Sets what a kernel expects its firmware to have set.
///
/// # Errors
/// [`KvmError::Call`], or [`KvmError::Lacks`] when KVM does not know one of them.
pub fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    });
    let msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Lacks("room for MSRs"))?;
    let set = vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    match set {
        0 => Err(KvmError::Lacks("IA32_MISC_ENABLE")),
        1 => Err(KvmError::Lacks("IA32_MTRR_DEF_TYPE")),
        _ => Ok(()),
    }
}
