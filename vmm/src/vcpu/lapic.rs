//! The local APIC as firmware leaves it on the boot CPU.

use kvm_ioctls::VcpuFd;

use crate::kvm::{KvmError, failed};

/// Local vector table registers (SDM vol. 3A, 11.5.1) and their delivery mode field, bits 10:8.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_MODE: u32 = 7 << 8;
const EXT_INT: u32 = 7 << 8;
const NMI: u32 = 4 << 8;

/// Virtual wire mode (Intel MP specification 1.4, 3.6.2.2): the PIC's interrupts come through LINT0, NMIs
/// through LINT1.
///
/// # Errors
/// [`KvmError::Call`].
pub fn set_virtual_wire(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    for (register, mode) in [(LVT_LINT0, EXT_INT), (LVT_LINT1, NMI)] {
        let bytes = &mut lapic.regs[register..register + 4];
        let raw: Vec<u8> = bytes.iter().map(|&byte| byte as u8).collect();
        let value = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        let value = (value & !DELIVERY_MODE) | mode;
        for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *byte = new as i8;
        }
    }
    vcpu.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))
}
