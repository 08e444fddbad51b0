//! The state of a vCPU that registers do not hold, and the way back for those that do.
#![allow(unsafe_code, reason = "ioctls that kvm-ioctls does not have, or leaves to its caller")]

use std::arch::x86_64::_rdtsc;
use std::cell::Cell;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET,
    Msrs, kvm_cpuid_entry2, kvm_device_attr, kvm_msr_entry, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use crate::config::{Feature, Register};

use super::Why;
use super::cpu::{Beyond, Cpu, control};
use super::linear::Trouble;

/// `KVM_GET_DEVICE_ATTR`.
const GET_DEVICE_ATTR: libc::Ioctl = 0x4018_aee2;
const MSR_TSC: u32 = 0x10;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// A vCPU of KVM's, for one instruction or one burst of them.
pub(super) struct Hosted<'a> {
    fd: &'a VcpuFd,
    /// What its CPUID does not offer.
    hidden: &'a [Feature],
    /// How far its time stamp counter is ahead of the host's, once asked.
    tsc_offset: Cell<Option<u64>>,
    /// IA32_KERNEL_GS_BASE, once asked: as KVM has it, and as it is.
    kernel_gs: Cell<Option<(u64, u64)>>,
}

impl<'a> Hosted<'a> {
    pub(super) fn new(fd: &'a VcpuFd, hidden: &'a [Feature]) -> Hosted<'a> {
        Hosted { fd, hidden, tsc_offset: Cell::new(None), kernel_gs: Cell::new(None) }
    }

    /// Gives KVM the registers. It forgets the exception with which it would have answered the instruction.
    ///
    /// # Errors
    /// KVM does not take them.
    pub(super) fn store(&self, cpu: &Cpu) -> Result<(), Why> {
        self.store_special(cpu)?;
        self.fd.set_regs(&cpu.regs).map_err(refused)
    }

    /// All but the general ones.
    ///
    /// # Errors
    /// As [`Hosted::store`].
    pub(super) fn store_special(&self, cpu: &Cpu) -> Result<(), Why> {
        if let Some((was, is)) = self.kernel_gs.take()
            && was != is
        {
            self.set_msr(MSR_KERNEL_GS_BASE, is)?;
        }
        if cpu.forget_translations {
            // KVM drops every translation of a vCPU for which PGE changes.
            let mut other = cpu.sregs;
            other.cr4 ^= control::CR4_PGE;
            self.fd.set_sregs(&other).map_err(refused)?;
        }
        if cpu.special_changed || cpu.forget_translations {
            self.fd.set_sregs(&cpu.sregs).map_err(refused)?;
        }
        Ok(())
    }

    /// Leaves an exception to KVM, which delivers it when it runs the guest.
    ///
    /// # Errors
    /// KVM does not take it.
    pub(super) fn inject(&self, vector: u8, code: Option<u32>) -> Result<(), Why> {
        let refused = |_| Why::State("KVM does not tell or take its events");
        let mut events = self.fd.get_vcpu_events().map_err(refused)?;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = vector;
        events.exception.has_error_code = code.is_some().into();
        events.exception.error_code = code.unwrap_or(0);
        self.fd.set_vcpu_events(&events).map_err(refused)
    }

    /// `KVM_VCPU_TSC_OFFSET`, exact where a difference of two readings would not be.
    fn ask_tsc_offset(&self) -> Option<u64> {
        let mut offset = 0;
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: KVM_VCPU_TSC_OFFSET.into(),
            addr: (&raw mut offset) as u64,
            flags: 0,
        };
        // SAFETY: KVM reads the attribute and writes eight bytes to `offset`; both live during the call.
        let asked =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), GET_DEVICE_ATTR, &raw const attribute) };
        (asked == 0).then_some(offset)
    }
}

impl Beyond for Hosted<'_> {
    fn xsave(&self) -> Result<Box<kvm_xsave>, Trouble> {
        let untold = |_| Trouble::State("KVM does not tell XSAVE state");
        self.fd.get_xsave().map(Box::new).map_err(untold)
    }

    fn set_xsave(&self, state: &kvm_xsave) -> Result<(), Trouble> {
        // SAFETY: the state of a guest without components that are enabled by request (AMX), of which this monitor's
        // guests have none, has at most the 4096 bytes of `kvm_xsave`.
        unsafe { self.fd.set_xsave(state) }
            .map_err(|_| Trouble::State("KVM does not take XSAVE state"))
    }

    fn xcr0(&self) -> Result<u64, Trouble> {
        let none = Trouble::State("KVM does not tell XCR0");
        let all = self.fd.get_xcrs().map_err(|_| none)?;
        let mut xcrs = all.xcrs[..all.nr_xcrs as usize].iter();
        xcrs.find(|xcr| xcr.xcr == 0).map(|xcr| xcr.value).ok_or(none)
    }

    fn set_xcr0(&self, value: u64) -> Result<(), Trouble> {
        let refused = |_| Trouble::State("KVM does not take XCR0");
        let mut all = self.fd.get_xcrs().map_err(refused)?;
        all.xcrs[0].xcr = 0;
        all.xcrs[0].value = value;
        all.nr_xcrs = 1;
        self.fd.set_xcrs(&all).map_err(refused)
    }

    /// KVM's, which follows CR4 and XCR0, less what is hidden: a KVM without VMX and SVM may offer it all the same.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Result<[u32; 4], Trouble> {
        let untold = |_| Trouble::State("KVM does not tell CPUID");
        let table = self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(untold)?;
        let is_it = |entry: &&kvm_cpuid_entry2| {
            let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
            entry.function == leaf && (!indexed || entry.index == subleaf)
        };
        let found = table.as_slice().iter().find(is_it);
        let mut told = found.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]);
        for feature in self.hidden.iter().filter(|f| (f.leaf, f.subleaf) == (leaf, subleaf)) {
            let register = match feature.register {
                Register::Eax => 0,
                Register::Ebx => 1,
                Register::Ecx => 2,
                Register::Edx => 3,
            };
            told[register] &= !feature.mask();
        }
        Ok(told)
    }

    fn tsc(&self) -> Result<u64, Trouble> {
        if self.tsc_offset.get().is_none() {
            self.tsc_offset.set(self.ask_tsc_offset());
        }
        match self.tsc_offset.get() {
            // SAFETY: every x86-64 processor has it, and Linux lets programs use it.
            Some(offset) => Ok(unsafe { _rdtsc() }.wrapping_add(offset)),
            None => self.msr(MSR_TSC),
        }
    }

    fn msr(&self, index: u32) -> Result<u64, Trouble> {
        let none = Trouble::State("KVM does not tell a model-specific register");
        let mut msrs = one(index, 0).ok_or(none)?;
        match self.fd.get_msrs(&mut msrs) {
            Ok(1) => Ok(msrs.as_slice()[0].data),
            _ => Err(none),
        }
    }

    fn set_msr(&self, index: u32, value: u64) -> Result<(), Trouble> {
        let refused = Trouble::State("KVM does not take a model-specific register");
        let msrs = one(index, value).ok_or(refused)?;
        match self.fd.set_msrs(&msrs) {
            Ok(1) => Ok(()),
            _ => Err(refused),
        }
    }

    fn exchange_kernel_gs(&self, value: u64) -> Result<u64, Trouble> {
        let (was, is) = match self.kernel_gs.get() {
            Some(both) => both,
            None => {
                let told = self.msr(MSR_KERNEL_GS_BASE)?;
                (told, told)
            }
        };
        self.kernel_gs.set(Some((was, value)));
        Ok(is)
    }
}

fn refused(_: kvm_ioctls::Error) -> Why {
    Why::State("KVM does not take its registers")
}

fn one(index: u32, data: u64) -> Option<Msrs> {
    Msrs::from_entries(&[kvm_msr_entry { index, data, ..kvm_msr_entry::default() }]).ok()
}
