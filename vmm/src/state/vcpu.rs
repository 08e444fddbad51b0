//! One vCPU.
//!
//! # Order
//! Asked in an order and given back in another, because KVM's calls are not independent (Linux, Documentation/virt/kvm/api.rst and
//! arch/x86/kvm/x86.c):
//! * `KVM_GET_MP_STATE` comes first: it takes INITs and SIPIs that are pending, which changes everything else. Then
//!   `KVM_GET_VCPU_EVENTS`, which may put what belongs to a pending exception into CR2 and DR6;
//! * the local APIC is restored after the special registers, which say where it is and in which mode;
//! * the deadline of its timer after its mode and the time stamp counter, which it is measured by;
//! * events after the general registers, setting of which drops exceptions; the state of activity last.
#![allow(unsafe_code, reason = "ioctls that kvm-ioctls does not have, or leaves to its caller")]

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Xsave, kvm_debugregs,
    kvm_device_attr, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_sregs2,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, KvmNestedStateBuffer, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use crate::kvm::{KvmError, failed};

use super::msrs::{self, Msr};
use super::raw::{Blob, Raw};

/// `_IOR(KVMIO, 0xcc, struct kvm_sregs2)` and `_IOW(KVMIO, 0xcd, struct kvm_sregs2)`.
const GET_SREGS2: libc::Ioctl = 0x8140_aecc;
const SET_SREGS2: libc::Ioctl = 0x4140_aecd;
/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)` and `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`.
const SET_DEVICE_ATTR: libc::Ioctl = 0x4018_aee1;
const GET_DEVICE_ATTR: libc::Ioctl = 0x4018_aee2;

const _: () = assert!(size_of::<kvm_sregs2>() == 0x140);

/// What the hypervisor has beyond what every one has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extras {
    local_apic: bool,
    sregs2: bool,
    nested: bool,
    /// Bytes of extended state.
    xsave: usize,
}

/// A vCPU that is not in the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// Whether it runs, sleeps, or waits to be started.
    mp_state: Raw<kvm_mp_state>,
    /// Exceptions, interrupts and NMIs that are on their way into it.
    events: Raw<kvm_vcpu_events>,
    regs: Raw<kvm_regs>,
    sregs: Raw<kvm_sregs>,
    /// The page-directory pointers, where it has them loaded: PAE paging.
    pdptrs: Option<[u64; 4]>,
    debug: Raw<kvm_debugregs>,
    xcrs: Raw<kvm_xcrs>,
    /// x87, SSE and what else XSAVE saves, in the standard format.
    xsave: Blob,
    lapic: Option<Raw<kvm_lapic_state>>,
    /// Model-specific registers.
    msrs: Vec<Msr>,
    /// The frequency of its time stamp counter.
    tsc_khz: u32,
    /// How far that counter is ahead of the host's, which counts as a difference between vCPUs.
    tsc_offset: Option<u64>,
    /// What it keeps as a hypervisor itself.
    nested: Option<Raw<KvmNestedStateBuffer>>,
}

impl Extras {
    pub(super) fn of(vm: &VmFd, local_apic: bool) -> Extras {
        let bytes = vm.check_extension_int(Cap::Xsave2).max(0) as usize;
        Extras {
            local_apic,
            sregs2: vm.check_extension_raw(kvm_bindings::KVM_CAP_SREGS2.into()) > 0,
            nested: vm.check_extension_int(Cap::NestedState) > 0,
            xsave: bytes.max(size_of::<kvm_xsave>()),
        }
    }
}

impl VcpuState {
    /// The state of `vcpu`, which is one of several that all rest. On its own thread.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub(super) fn of(vcpu: &VcpuFd, extras: Extras, msrs: &[u32]) -> Result<VcpuState, KvmError> {
        let mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        let events = vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        let lapic = || vcpu.get_lapic().map(Raw).map_err(failed("KVM_GET_LAPIC"));
        Ok(VcpuState {
            mp_state: Raw(mp_state),
            events: Raw(events),
            regs: Raw(vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?),
            sregs: Raw(vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?),
            pdptrs: if extras.sregs2 { pdptrs(vcpu)? } else { None },
            debug: Raw(vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?),
            xcrs: Raw(vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?),
            xsave: xsave(vcpu, extras.xsave)?,
            lapic: extras.local_apic.then(lapic).transpose()?,
            msrs: msrs::get(vcpu, msrs)?,
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            tsc_offset: tsc_offset(vcpu),
            nested: if extras.nested { nested(vcpu)? } else { None },
        })
    }

    /// Makes `vcpu`, which has its CPUID, what this is. `boot` is the state of the first vCPU and how far the counter of that one
    /// is ahead now, once it is restored.
    ///
    /// # Errors
    /// [`KvmError`]: the vCPU is to be thrown away.
    pub(super) fn restore(
        &self,
        vcpu: &VcpuFd,
        extras: Extras,
        boot: Option<(&VcpuState, Option<u64>)>,
    ) -> Result<(), KvmError> {
        if self.tsc_khz != 0 && vcpu.get_tsc_khz().is_ok_and(|khz| khz != self.tsc_khz) {
            vcpu.set_tsc_khz(self.tsc_khz).map_err(failed("KVM_SET_TSC_KHZ"))?;
        }
        self.set_sregs(vcpu)?;
        if let Some(Raw(state)) = &self.nested {
            vcpu.set_nested_state(state).map_err(failed("KVM_SET_NESTED_STATE"))?;
        }
        vcpu.set_regs(&self.regs.0).map_err(failed("KVM_SET_REGS"))?;
        vcpu.set_xcrs(&self.xcrs.0).map_err(failed("KVM_SET_XCRS"))?;
        set_xsave(vcpu, &self.xsave, extras.xsave)?;
        vcpu.set_debug_regs(&self.debug.0).map_err(failed("KVM_SET_DEBUGREGS"))?;
        if let Some(Raw(lapic)) = &self.lapic {
            vcpu.set_lapic(lapic).map_err(failed("KVM_SET_LAPIC"))?;
        }
        msrs::set(vcpu, &self.msrs, || {
            // The same difference as before, whatever time passes from one vCPU to the next.
            if let Some((first, Some(now))) = boot
                && let (Some(then), Some(own)) = (first.tsc_offset, self.tsc_offset)
            {
                set_tsc_offset(vcpu, now.wrapping_add(own.wrapping_sub(then)))?;
            }
            Ok(())
        })?;
        vcpu.set_vcpu_events(&self.events.0).map_err(failed("KVM_SET_VCPU_EVENTS"))?;
        vcpu.set_mp_state(self.mp_state.0).map_err(failed("KVM_SET_MP_STATE"))
    }

    fn set_sregs(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let Raw(sregs) = self.sregs;
        vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        let Some(pdptrs) = self.pdptrs else { return Ok(()) };
        let sregs2 = kvm_sregs2 {
            cs: sregs.cs,
            ds: sregs.ds,
            es: sregs.es,
            fs: sregs.fs,
            gs: sregs.gs,
            ss: sregs.ss,
            tr: sregs.tr,
            ldt: sregs.ldt,
            gdt: sregs.gdt,
            idt: sregs.idt,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            apic_base: sregs.apic_base,
            flags: KVM_SREGS2_FLAGS_PDPTRS_VALID.into(),
            pdptrs,
        };
        // SAFETY: KVM reads the structure, which lives during the call.
        let set = unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_SREGS2, &raw const sregs2) };
        done(set, "KVM_SET_SREGS2")
    }
}

/// How far the time stamp counter of `vcpu` is ahead of the host's, where KVM says.
pub(super) fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0_u64;
    let attribute = tsc_attribute(&raw mut offset);
    // SAFETY: KVM reads the attribute and writes eight bytes to `offset`; both live during the call.
    let asked = unsafe { libc::ioctl(vcpu.as_raw_fd(), GET_DEVICE_ATTR, &raw const attribute) };
    (asked == 0).then_some(offset)
}

fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), KvmError> {
    let attribute = tsc_attribute(&raw mut offset);
    // SAFETY: KVM reads the attribute and the eight bytes of `offset`; both live during the call.
    let set = unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_DEVICE_ATTR, &raw const attribute) };
    done(set, "KVM_SET_DEVICE_ATTR (the offset of the time stamp counter)")
}

fn tsc_attribute(offset: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: offset as u64,
        flags: 0,
    }
}

fn pdptrs(vcpu: &VcpuFd) -> Result<Option<[u64; 4]>, KvmError> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM writes the structure, which lives during the call.
    let got = unsafe { libc::ioctl(vcpu.as_raw_fd(), GET_SREGS2, &raw mut sregs) };
    done(got, "KVM_GET_SREGS2")?;
    let valid = sregs.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    Ok(valid.then_some(sregs.pdptrs))
}

fn nested(vcpu: &VcpuFd) -> Result<Option<Raw<KvmNestedStateBuffer>>, KvmError> {
    let mut state = KvmNestedStateBuffer::empty();
    let used = vcpu.nested_state(&mut state).map_err(failed("KVM_GET_NESTED_STATE"))?;
    Ok(used.map(|_| Raw(state)))
}

/// Extended state of `bytes` bytes.
fn xsave(vcpu: &VcpuFd, bytes: usize) -> Result<Blob, KvmError> {
    if bytes == size_of::<kvm_xsave>() {
        let state = vcpu.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        return Ok(Blob(state.region.iter().flat_map(|word| word.to_le_bytes()).collect()));
    }
    let mut state = room_for(bytes)?;
    // SAFETY: there is room for what `KVM_CAP_XSAVE2` says, and this process enables no features on request.
    unsafe { vcpu.get_xsave2(&mut state) }.map_err(failed("KVM_GET_XSAVE2"))?;
    let head = state.as_fam_struct_ref().xsave.region.iter();
    let words = head.chain(state.as_slice()).flat_map(|word| word.to_le_bytes());
    Ok(Blob(words.take(bytes).collect()))
}

/// Sets extended state, of which KVM here reads `room` bytes.
fn set_xsave(vcpu: &VcpuFd, Blob(bytes): &Blob, room: usize) -> Result<(), KvmError> {
    if bytes.len() > room {
        return Err(KvmError::Lacks("room for the extended state that was saved"));
    }
    let mut state = room_for(room)?;
    let words: Vec<u32> =
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("4"))).collect();
    let head = size_of::<kvm_xsave>() / 4;
    for (place, word) in state.as_mut_slice().iter_mut().zip(words.iter().skip(head)) {
        *place = *word;
    }
    let mut fixed = kvm_xsave::default();
    for (place, word) in fixed.region.iter_mut().zip(&words) {
        *place = *word;
    }
    // SAFETY: the header's length is not touched.
    unsafe { state.as_mut_fam_struct() }.xsave = fixed;
    // SAFETY: there is room for what `KVM_CAP_XSAVE2` says, and this process enables no features on request.
    unsafe { vcpu.set_xsave2(&state) }.map_err(failed("KVM_SET_XSAVE"))
}

fn room_for(bytes: usize) -> Result<Xsave, KvmError> {
    let more = bytes.saturating_sub(size_of::<kvm_xsave>()).div_ceil(4);
    Xsave::new(more).map_err(|_| KvmError::Lacks("room for extended state"))
}

fn done(result: i32, call: &'static str) -> Result<(), KvmError> {
    match result {
        0 => Ok(()),
        _ => Err(failed(call)(errno::Error::last())),
    }
}

#[cfg(test)]
impl VcpuState {
    /// Its time stamp counter.
    pub(crate) fn tsc(&self) -> Option<u64> {
        self.msrs.iter().find(|msr| msr.index == msrs::TSC).map(|msr| msr.value)
    }

    /// One like no other.
    pub(super) fn sample([rip, cr3, pdptr, tsc, msr, xsave, lapic, nested]: [u64; 8]) -> VcpuState {
        let mut page = kvm_lapic_state::default();
        page.regs[0x320] = lapic as i8;
        let mut buffer = KvmNestedStateBuffer::empty();
        buffer.flags = nested as u16;
        VcpuState {
            mp_state: Raw(kvm_mp_state { mp_state: lapic as u32 }),
            events: Raw(kvm_vcpu_events { flags: rip as u32, ..kvm_vcpu_events::default() }),
            regs: Raw(kvm_regs { rip, ..kvm_regs::default() }),
            sregs: Raw(kvm_sregs { cr3, ..kvm_sregs::default() }),
            pdptrs: (pdptr % 2 == 0).then_some([pdptr; 4]),
            debug: Raw(kvm_debugregs { dr7: cr3, ..kvm_debugregs::default() }),
            xcrs: Raw(kvm_xcrs { nr_xcrs: tsc as u32, ..kvm_xcrs::default() }),
            xsave: Blob(xsave.to_le_bytes().repeat(512)),
            lapic: (lapic % 2 == 0).then_some(Raw(page)),
            msrs: vec![Msr { index: msr as u32, value: msr }; 3],
            tsc_khz: tsc as u32,
            tsc_offset: (tsc % 2 == 0).then_some(tsc),
            nested: (nested % 2 == 0).then_some(Raw(buffer)),
        }
    }
}
