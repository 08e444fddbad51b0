//! What CPUID tells the guest.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use crate::config::{Feature, Register};

use super::{KvmError, failed};

/// Leaf 8000_0001h: extended feature bits.
const EXTENDED_FEATURES: u32 = 0x8000_0001;
/// Its EDX bit 26: 1 GiB pages.
const PDPE1GB: u32 = 1 << 26;
/// Leaf 1, ECX bit 24: the local APIC has a TSC-deadline timer. KVM lists it only by capability.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX bit 31: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX bit 28: leaf 1's count of logical processors is valid.
const MULTI_THREADED: u32 = 1 << 28;

/// The CPU that the guests of one machine see: what KVM supports here, less what the config hides.
#[derive(Debug)]
pub struct CpuPlan {
    supported: CpuId,
    vcpus: u8,
}

impl CpuPlan {
    /// For `vcpus` vCPUs, without `hidden`; with the local APIC's timer if there is a local APIC.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn new(
        kvm: &Kvm,
        vcpus: u8,
        hidden: &[Feature],
        local_apic: bool,
    ) -> Result<CpuPlan, KvmError> {
        let mut supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let deadline = local_apic && kvm.check_extension(Cap::TscDeadlineTimer);
        for entry in supported.as_mut_slice() {
            if entry.function == 1 {
                entry.ecx |= HYPERVISOR;
                entry.ecx &= !TSC_DEADLINE;
                entry.ecx |= if deadline { TSC_DEADLINE } else { 0 };
            }
            for feature in hidden {
                if (feature.leaf, feature.subleaf) == (entry.function, entry.index) {
                    let register = match feature.register {
                        Register::Eax => &mut entry.eax,
                        Register::Ebx => &mut entry.ebx,
                        Register::Ecx => &mut entry.ecx,
                        Register::Edx => &mut entry.edx,
                    };
                    *register &= !feature.mask();
                }
            }
        }
        Ok(CpuPlan { supported, vcpus })
    }

    /// The leaves of vCPU `index`: it learns its APIC id, and that every vCPU is a core of its own
    /// (SDM vol. 2A, CPUID leaves 1, 4, 0Bh and 1Fh).
    pub fn for_vcpu(&self, index: u8) -> CpuId {
        let id = u32::from(index);
        let vcpus = u32::from(self.vcpus);
        // Bits of an APIC id that tell cores apart.
        let core_bits = u32::from(self.vcpus.next_power_of_two()).trailing_zeros();
        let mut cpuid = self.supported.clone();
        for entry in cpuid.as_mut_slice() {
            match entry.function {
                1 => {
                    entry.ebx = (entry.ebx & 0xffff) | (vcpus << 16) | (id << 24);
                    entry.edx &= !MULTI_THREADED;
                    entry.edx |= if vcpus > 1 { MULTI_THREADED } else { 0 };
                }
                4 if entry.eax & 0x1f != 0 => {
                    // EAX 31:26: cores in the package less one; 25:14: threads that share the cache.
                    entry.eax = (entry.eax & 0x3fff) | ((vcpus - 1) << 26);
                }
                0xb | 0x1f => {
                    entry.edx = id;
                    let (shift, processors, kind) = match entry.index {
                        0 => (0, 1, 1),
                        1 => (core_bits, vcpus, 2),
                        _ => (0, 0, 0),
                    };
                    entry.eax = shift;
                    entry.ebx = processors;
                    entry.ecx = entry.index | (kind << 8);
                }
                _ => {}
            }
        }
        cpuid
    }

    /// Whether the guest may use 1 GiB pages.
    pub fn has_one_gib_pages(&self) -> bool {
        let mut leaves = self.supported.as_slice().iter();
        leaves.any(|entry| entry.function == EXTENDED_FEATURES && entry.edx & PDPE1GB != 0)
    }
}
