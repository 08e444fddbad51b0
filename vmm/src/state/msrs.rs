//! Model-specific registers.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::kvm::{KvmError, failed};

pub(super) const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_MCG_CAP: bits 7:0, banks of machine-check registers, of which each has four from `MC0_CTL` on.
const MCG_CAP: u32 = 0x179;
const MC0_CTL: u32 = 0x400;
const MC_BANKS: u32 = 32;
/// Memory types: by range, for fixed ranges, the page attribute table, and the default (SDM vol. 3A, 12.11).
const MTRR_RANGES: std::ops::Range<u32> = 0x200..0x210;
const MTRR_FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const PAT: u32 = 0x277;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// `MSR_KVM_WALL_CLOCK` and its successor: a write is a command to put the time into memory. It was carried out when the guest
/// gave it, and is not to be once more.
const COMMANDS: [u32; 2] = [0x11, 0x4b56_4d00];
/// What KVM takes at once.
const BATCH: usize = 128;

/// One register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Msr {
    pub(super) index: u32,
    pub(super) value: u64,
}

/// The registers that KVM says it has, and those that it has without saying so.
///
/// # Errors
/// [`KvmError::Call`].
pub(super) fn known(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
    let mut all: Vec<u32> = list.as_slice().to_vec();
    all.extend(MTRR_RANGES.chain(MTRR_FIXED).chain([PAT, MTRR_DEF_TYPE, MCG_CAP]));
    all.extend(MC0_CTL..MC0_CTL + 4 * MC_BANKS);
    all.sort_unstable();
    all.dedup();
    all.retain(|index| !COMMANDS.contains(index));
    Ok(all)
}

/// Those of `indices` that `vcpu` has.
///
/// # Errors
/// [`KvmError::Call`].
pub(super) fn get(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, KvmError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let batch = &left[..left.len().min(BATCH)];
        let mut msrs = list(batch.iter().map(|&index| Msr { index, value: 0 }))?;
        let got = vcpu.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        let told = msrs.as_slice()[..got].iter();
        found.extend(told.map(|entry| Msr { index: entry.index, value: entry.data }));
        // KVM stops at the first that it does not have.
        left = &left[(got + 1).min(batch.len())..];
    }
    Ok(found)
}

/// Sets `msrs`, less those that `vcpu` has as they are. Once the time stamp counter is set, and before what depends on it,
/// `adjust` is called.
///
/// # Errors
/// [`KvmError`]: one is refused, which is named.
pub(super) fn set(
    vcpu: &VcpuFd,
    msrs: &[Msr],
    adjust: impl FnOnce() -> Result<(), KvmError>,
) -> Result<(), KvmError> {
    let indices: Vec<u32> = msrs.iter().map(|msr| msr.index).collect();
    let there = get(vcpu, &indices)?;
    let is_timer = |msr: &&Msr| msr.index == TSC || msr.index == TSC_DEADLINE;
    let one = |index| msrs.iter().copied().filter(move |msr| msr.index == index);
    put(vcpu, one(TSC))?;
    adjust()?;
    put(vcpu, msrs.iter().filter(|msr| !is_timer(msr) && !there.contains(msr)).copied())?;
    put(vcpu, one(TSC_DEADLINE))
}

fn put(vcpu: &VcpuFd, msrs: impl Iterator<Item = Msr>) -> Result<(), KvmError> {
    let msrs: Vec<Msr> = msrs.collect();
    for batch in msrs.chunks(BATCH) {
        let set = vcpu.set_msrs(&list(batch.iter().copied())?).map_err(failed("KVM_SET_MSRS"))?;
        if let Some(Msr { index, value }) = batch.get(set) {
            return Err(KvmError::Msr { index: *index, value: *value });
        }
    }
    Ok(())
}

fn list(msrs: impl Iterator<Item = Msr>) -> Result<Msrs, KvmError> {
    let entry = |Msr { index, value }| kvm_msr_entry { index, data: value, reserved: 0 };
    let entries: Vec<_> = msrs.map(entry).collect();
    Msrs::from_entries(&entries).map_err(|_| KvmError::Lacks("room for MSRs"))
}
