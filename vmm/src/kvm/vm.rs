//! One VM: its memory slots and its interrupt controllers.
#![allow(unsafe_code, reason = "gives KVM the addresses of guest memory")]

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{KvmError, failed};

/// Where KVM may put its real-mode task segment on hosts that need one (three pages), and, below it, its
/// identity map. Both lie in the MMIO hole, under the BIOS area.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = TSS_ADDRESS as u64 - 0x1000;

/// A range of guest-physical memory and where it is in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// First guest-physical address, a multiple of 4 KiB.
    pub gpa: u64,
    /// First address in this process.
    pub hva: u64,
    /// Length in bytes, a multiple of 4 KiB.
    pub bytes: u64,
}

/// A VM. Its memory slots keep pointing where they do until it is dropped.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    slots: Vec<Slot>,
}

impl Vm {
    /// A VM with this memory and nothing else.
    ///
    /// Memory comes first: in a VM that has an interrupt controller, KVM waits for an RCU grace period
    /// (6 to 7 ms) before a slot is in force.
    ///
    /// # Safety
    /// 1. Each slot's range of this process stays mapped, readable and writable, until the `Vm` is
    ///    dropped.
    /// 2. No reference of this process points into it: the guest changes it at any time.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub unsafe fn new(kvm: &Kvm, slots: &[Slot]) -> Result<Vm, KvmError> {
        let fd = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        let vm = Vm { fd, slots: slots.to_vec() };
        vm.set_slots(0)?;
        Ok(vm)
    }

    fn set_slots(&self, flags: u32) -> Result<(), KvmError> {
        for (index, slot) in self.slots.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: index as u32,
                flags,
                guest_phys_addr: slot.gpa,
                memory_size: slot.bytes,
                userspace_addr: slot.hva,
            };
            // SAFETY: obligations 1 and 2 of `new` are its caller's, for as long as this lives; the place of a slot does not
            // change.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Its memory.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// KVM notes from now on which pages vCPUs write to, and what it writes itself. Huge pages are mapped in small ones for it.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn log_dirty(&self) -> Result<(), KvmError> {
        self.set_slots(KVM_MEM_LOG_DIRTY_PAGES)
    }

    /// KVM notes that no more.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn ignore_dirty(&self) -> Result<(), KvmError> {
        self.set_slots(0)
    }

    /// What was noted of each slot since it was last asked: the page number `64 * i + j` of the slot is bit `j` of word `i`.
    ///
    /// # Errors
    /// [`KvmError::Call`]: what was noted of slots before the one that failed is lost.
    pub fn take_dirty(&self, mut see: impl FnMut(Slot, &[u64])) -> Result<(), KvmError> {
        for (index, slot) in self.slots.iter().enumerate() {
            let log = self.fd.get_dirty_log(index as u32, slot.bytes as usize);
            see(*slot, &log.map_err(failed("KVM_GET_DIRTY_LOG"))?);
        }
        Ok(())
    }

    /// Gives it the PC's interrupt controllers (two PICs, an I/O APIC, a local APIC in each vCPU) and
    /// its timer. Before any vCPU.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn add_irqchip(&self) -> Result<(), KvmError> {
        let fd = &self.fd;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
        // With the speaker port, which Linux reads to calibrate its time stamp counter.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        fd.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))
    }

    /// Raises `gsi` whenever `event` is signalled.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn connect_irq(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, gsi).map_err(failed("KVM_IRQFD"))
    }

    /// Signals `event` whenever a vCPU writes the 32 bits `value` to `address`, without an exit to this process.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn connect_kick(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(address);
        self.fd.register_ioevent(event, &address, value).map_err(failed("KVM_IOEVENTFD"))
    }

    /// KVM's, for who saves and restores what it keeps of the VM.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The vCPU number `index`.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn add_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(index.into()).map_err(failed("KVM_CREATE_VCPU"))
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use ::tests::require_kvm;
    use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    /// The interrupts that the PICs have noticed. They keep an edge, whether or not it is let through.
    fn noticed(vm: &Vm) -> u16 {
        let irr = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            vm.fd.get_irqchip(&mut chip).expect("it has one");
            // SAFETY: KVM has filled in the part of the union that `chip_id` names.
            unsafe { chip.chip.pic.irr }
        };
        u16::from_le_bytes([irr(KVM_IRQCHIP_PIC_MASTER), irr(KVM_IRQCHIP_PIC_SLAVE)])
    }

    #[test]
    fn an_event_raises_the_interrupt_that_it_is_connected_to() {
        if !require_kvm() {
            return;
        }
        let kvm = crate::kvm::open().expect("KVM is there");
        // SAFETY: there are no slots.
        let vm = unsafe { Vm::new(&kvm, &[]) }.expect("a VM");
        vm.add_irqchip().expect("interrupt controllers");
        for line in [5, 7, 10, 14] {
            let event = EventFd::new(EFD_NONBLOCK).expect("an event");
            vm.connect_irq(&event, line).expect("the line is there");
            assert_eq!(noticed(&vm) & 1 << line, 0);
            event.write(1).expect("an event can be signalled");
            // A worker of the kernel's passes it on.
            let begin = Instant::now();
            while noticed(&vm) & 1 << line == 0 {
                assert!(begin.elapsed() < Duration::from_secs(10), "line {line}");
                sleep(Duration::from_millis(1));
            }
        }
    }
}
