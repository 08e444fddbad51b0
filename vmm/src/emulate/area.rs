//! The XSAVE area in its standard format, as KVM hands it out, and where its parts lie (SDM vol. 1, 13.4).

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;

use kvm_bindings::kvm_xsave;

use super::exception::Exception;
use super::linear::Trouble;

/// Offsets in the legacy region, and the two components that it holds.
pub(super) mod legacy {
    pub(in crate::emulate) const FCW: usize = 0;
    pub(in crate::emulate) const FSW: usize = 2;
    pub(in crate::emulate) const FTW: usize = 4;
    pub(in crate::emulate) const FOP: usize = 6;
    pub(in crate::emulate) const FIP: usize = 8;
    pub(in crate::emulate) const MXCSR: usize = 24;
    pub(in crate::emulate) const MXCSR_MASK: usize = 28;
    pub(in crate::emulate) const ST: usize = 32;
    pub(in crate::emulate) const XMM: usize = 160;
    pub(in crate::emulate) const XMM_END: usize = 416;

    pub(in crate::emulate) const X87: u64 = 1 << 0;
    pub(in crate::emulate) const SSE: u64 = 1 << 1;
    pub(in crate::emulate) const AVX: u64 = 1 << 2;
}

/// The header, behind the legacy region.
pub(super) const HEADER: usize = 512;
/// Where the extended region begins.
pub(super) const EXTENDED: usize = 576;
/// MXCSR at reset.
pub(super) const MXCSR_INIT: u32 = 0x1f80;
const FCW_INIT: u16 = 0x37f;
/// The bits of MXCSR where the processor gives no mask.
const MXCSR_MASK_DEFAULT: u32 = 0xffbf;
const BYTES: usize = 4096;
/// Leaf 0Dh: subleaf i is component i.
const LEAF: u32 = 0xd;

/// An area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Area(Box<[u8; BYTES]>);

impl Area {
    pub(super) fn of(state: &kvm_xsave) -> Area {
        let mut bytes = Box::new([0; BYTES]);
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(state.region) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        Area(bytes)
    }

    pub(super) fn into_kvm(self) -> kvm_xsave {
        let mut state = kvm_xsave::default();
        for (word, chunk) in state.region.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = u32::from_le_bytes(chunk.try_into().expect("four bytes"));
        }
        state
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.0[range]
    }

    pub(super) fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.0[range]
    }

    pub(super) fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    pub(super) fn set_u16_at(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    /// XSTATE_BV: the components that are not as they were at reset.
    pub(super) fn used(&self) -> u64 {
        self.u64_at(HEADER)
    }

    fn set_used(&mut self, used: u64) {
        self.0[HEADER..HEADER + 8].copy_from_slice(&used.to_le_bytes());
    }

    pub(super) fn mark_used(&mut self, components: u64) {
        self.set_used(self.used() | components);
    }

    /// Sets MXCSR.
    ///
    /// # Errors
    /// A reserved bit is set: a general protection exception.
    pub(super) fn set_mxcsr(&mut self, value: u32) -> Result<(), Trouble> {
        let mask = match self.u32_at(legacy::MXCSR_MASK) {
            0 => MXCSR_MASK_DEFAULT,
            mask => mask,
        };
        if value & !mask != 0 {
            return Err(Exception::protection().into());
        }
        self.0[legacy::MXCSR..legacy::MXCSR_MASK].copy_from_slice(&value.to_le_bytes());
        Ok(())
    }

    /// Puts a component into its state at reset. MXCSR is none's (SDM vol. 1, 13.6).
    pub(super) fn reset(&mut self, component: u32) {
        match component {
            0 => {
                self.0[..legacy::MXCSR].fill(0);
                self.0[legacy::ST..legacy::XMM].fill(0);
                self.set_u16_at(legacy::FCW, FCW_INIT);
            }
            1 => self.0[legacy::XMM..legacy::XMM_END].fill(0),
            _ => {
                if let Some(place) = standard(component) {
                    self.0[place].fill(0);
                }
            }
        }
        self.set_used(self.used() & !(1 << component));
    }
}

/// Where component `component` lies in the standard format, if this processor has it and KVM's area holds it.
pub(super) fn standard(component: u32) -> Option<Range<usize>> {
    let leaf = __cpuid_count(LEAF, component);
    let (size, offset) = (leaf.eax as usize, leaf.ebx as usize);
    // Supervisor components have no place in it.
    let place = offset..offset.checked_add(size)?;
    (size > 0 && offset >= EXTENDED && place.end <= BYTES).then_some(place)
}

/// Where the extended components of `layout` (XCOMP_BV) lie in the compacted format, in order (SDM vol. 1, 13.4.3).
pub(super) fn compacted(layout: u64) -> Vec<(u32, Range<usize>)> {
    let mut end = EXTENDED;
    (2..63)
        .filter(|component| layout >> component & 1 != 0)
        .map(|component| {
            let leaf = __cpuid_count(LEAF, component);
            let aligned = leaf.ecx & 2 != 0;
            let start = if aligned { end.next_multiple_of(64) } else { end };
            end = start + leaf.eax as usize;
            (component, start..end)
        })
        .collect()
}
