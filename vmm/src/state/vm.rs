//! What KVM keeps of a VM beside its vCPUs: the interrupt controllers, the timer and the clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::kvm::{KvmError, failed};

use super::raw::Raw;

/// A VM whose vCPUs rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// Nanoseconds of the paravirtual clock.
    clock_ns: u64,
    controllers: Option<Controllers>,
}

/// The interrupt controllers that all vCPUs share, and the timer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Controllers {
    pics: [Raw<kvm_irqchip>; 2],
    ioapic: Raw<kvm_irqchip>,
    pit: Raw<kvm_pit_state2>,
}

impl VmState {
    /// The state of `vm`.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub(super) fn of(vm: &VmFd, has_irqchip: bool) -> Result<VmState, KvmError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            vm.get_irqchip(&mut chip).map_err(failed("KVM_GET_IRQCHIP"))?;
            Ok(Raw(chip))
        };
        let controllers = || {
            Ok(Controllers {
                pics: [chip(KVM_IRQCHIP_PIC_MASTER)?, chip(KVM_IRQCHIP_PIC_SLAVE)?],
                ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
                pit: Raw(vm.get_pit2().map_err(failed("KVM_GET_PIT2"))?),
            })
        };
        Ok(VmState {
            clock_ns: vm.get_clock().map_err(failed("KVM_GET_CLOCK"))?.clock,
            controllers: has_irqchip.then(controllers).transpose()?,
        })
    }

    /// Makes `vm`, whose vCPUs are restored, what this is. The clock goes on from here.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub(super) fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        if let Some(Controllers { pics, ioapic, pit }) = &self.controllers {
            vm.set_pit2(&pit.0).map_err(failed("KVM_SET_PIT2"))?;
            // After the local APICs, which take at once what the I/O APIC has for them.
            for Raw(chip) in pics.iter().chain([ioapic]) {
                vm.set_irqchip(chip).map_err(failed("KVM_SET_IRQCHIP"))?;
            }
        }
        let clock = kvm_clock_data { clock: self.clock_ns, ..kvm_clock_data::default() };
        vm.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))
    }
}

#[cfg(test)]
impl VmState {
    /// Nanoseconds of the clock.
    pub(crate) fn clock_ns(&self) -> u64 {
        self.clock_ns
    }

    /// One like no other.
    pub(super) fn sample(clock_ns: u64, has_irqchip: bool) -> VmState {
        let chip = |chip_id| Raw(kvm_irqchip { chip_id, ..kvm_irqchip::default() });
        let controllers = || {
            let mut pit = kvm_pit_state2 { flags: clock_ns as u32, ..kvm_pit_state2::default() };
            pit.channels[0].count_load_time = clock_ns as i64;
            Controllers { pics: [chip(0), chip(1)], ioapic: chip(2), pit: Raw(pit) }
        };
        VmState { clock_ns, controllers: has_irqchip.then(controllers) }
    }
}
