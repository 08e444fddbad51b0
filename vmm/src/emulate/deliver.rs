//! How an exception reaches the guest.

use kvm_ioctls::VcpuFd;

use super::Why;
use super::cpu::Cpu;
use super::exception::Exception;

pub(super) fn deliver(
    vcpu: &VcpuFd,
    cpu: &mut Cpu,
    exception: Exception,
) -> Result<(), Why> {
    let untold = |_| Why::State("KVM does not tell its events");
    if let Some(address) = exception.address {
        cpu.sregs.cr2 = address;
        cpu.special_changed = true;
    }
    vcpu.set_regs(&cpu.regs).map_err(untold)?;
    let mut events = vcpu.get_vcpu_events().map_err(untold)?;
    events.exception.injected = 1;
    events.exception.pending = 0;
    events.exception.nr = exception.vector;
    events.exception.has_error_code = exception.code.is_some().into();
    events.exception.error_code = exception.code.unwrap_or(0);
    vcpu.set_vcpu_events(&events).map_err(untold)
}
