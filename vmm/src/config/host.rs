//! What the host allows, and where RAM lies in a guest's physical address space.

use std::arch::x86_64::__cpuid;

use serde::Serialize;

use super::Bytes;

/// The first guest-physical address of the MMIO hole. RAM that would reach into it goes on at [`HOLE_END`].
pub const HOLE_START: u64 = 0xC000_0000;

/// The first guest-physical address behind the MMIO hole.
pub const HOLE_END: u64 = 1 << 32;

/// The limits that a config is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Guest-physical address bits, 32 to 52.
    pub phys_bits: u8,
    /// Whether the processor has VMX or SVM, and so runs a guest's ring 0 itself. A KVM without either emulates it.
    pub runs_ring0: bool,
}

impl Host {
    /// The limits of the CPU that this runs on. KVM may allow fewer bits: who has asked it fills the field in.
    pub fn of_this_cpu() -> Self {
        const ADDRESS_SIZES: u32 = 0x8000_0008;
        let phys_bits = if __cpuid(0x8000_0000).eax >= ADDRESS_SIZES {
            __cpuid(ADDRESS_SIZES).eax as u8
        } else {
            36 // SDM vol. 2, CPUID: what a CPU without the leaf has, if it has PAE.
        };
        Host { phys_bits: phys_bits.clamp(32, 52), runs_ring0: has_vmx() || has_svm() }
    }

    /// The address behind the last that a guest's memory can have: the tables of the memory service map 48 bits.
    pub fn address_limit(self) -> u64 {
        1 << self.phys_bits.min(48)
    }

    /// The most RAM that a guest's address space has room for, the hole left out.
    pub fn ram_limit(self) -> Bytes {
        Bytes::new((1 << self.phys_bits) - (HOLE_END - HOLE_START))
    }
}

/// Leaf 1, ECX bit 5 (SDM vol. 2A, CPUID).
fn has_vmx() -> bool {
    __cpuid(1).ecx & 1 << 5 != 0
}

/// Leaf 8000_0001h, ECX bit 2 (APM vol. 3, appendix E.4.2).
fn has_svm() -> bool {
    const EXTENDED_FEATURES: u32 = 0x8000_0001;
    __cpuid(0x8000_0000).eax >= EXTENDED_FEATURES && __cpuid(EXTENDED_FEATURES).ecx & 1 << 2 != 0
}

/// A piece of guest-physical address space with RAM in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RamRange {
    /// Its first guest-physical address.
    pub start: u64,
    /// Its length.
    pub length: Bytes,
}

impl RamRange {
    /// The first address behind it.
    pub fn end(self) -> u64 {
        self.start + self.length.get()
    }
}

/// Where `size` of RAM lies: from 0 up to the hole, the rest from 4 GiB. `size` is at most a [`Host::ram_limit`].
pub fn ram_ranges(size: Bytes) -> impl Iterator<Item = RamRange> + Clone {
    let below = size.get().min(HOLE_START);
    [(0, below), (HOLE_END, size.get() - below)]
        .into_iter()
        .filter(|&(_, length)| length > 0)
        .map(|(start, length)| RamRange { start, length: Bytes::new(length) })
}

/// Where memory lies that is no RAM: pieces of these sizes behind a RAM of `ram` and the hole, each from a multiple of 1 GiB
/// on, as what maps it likes best. A piece that would end behind the last address of all is the last one.
pub fn pmem_ranges(
    ram: Bytes,
    sizes: impl IntoIterator<Item = Bytes>,
) -> impl Iterator<Item = RamRange> {
    const GIB: u64 = 1 << 30;
    let mut end = ram_ranges(ram).last().map_or(0, RamRange::end).max(HOLE_END);
    sizes.into_iter().map_while(move |length| {
        let start = end.checked_next_multiple_of(GIB)?;
        end = start.checked_add(length.get())?;
        Some(RamRange { start, length })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        let layout = |size| ram_ranges(size).map(|r| (r.start, r.end())).collect::<Vec<_>>();
        assert_eq!(layout(Bytes::mib(64)), [(0, 64 << 20)]);
        assert_eq!(layout(Bytes::gib(3)), [(0, HOLE_START)]);
        assert_eq!(layout(Bytes::gib(5)), [(0, HOLE_START), (HOLE_END, 6 << 30)]);
    }

    #[test]
    fn what_is_no_ram_lies_behind_it_by_the_gib() {
        let layout = |ram, sizes: &[u64]| {
            let sizes = sizes.iter().map(|&mib| Bytes::mib(mib));
            pmem_ranges(ram, sizes).map(|r| (r.start >> 20, r.end() >> 20)).collect::<Vec<_>>()
        };
        assert_eq!(
            layout(Bytes::mib(64), &[2, 1026, 4]),
            [(4096, 4098), (5120, 6146), (7168, 7172)]
        );
        assert_eq!(layout(Bytes::gib(4), &[2]), [(5120, 5122)]);
        assert_eq!(layout(Bytes::gib(5), &[2]), [(6144, 6146)]);
        let all = pmem_ranges(Bytes::mib(64), [Bytes::new(1 << 62); 9]).count();
        assert_eq!(all, 3, "what there is no address for is left out");
    }

    #[test]
    fn the_largest_guest_ends_where_the_address_space_does() {
        for phys_bits in 32..=52 {
            let limit = Host { phys_bits, runs_ring0: true }.ram_limit();
            let end = ram_ranges(limit).last().map(RamRange::end);
            if phys_bits == 32 {
                assert_eq!(end, Some(HOLE_START));
            } else {
                assert_eq!(end, Some(1 << phys_bits));
            }
        }
    }

    #[test]
    fn this_cpu_has_a_plausible_width() {
        assert!((32..=52).contains(&Host::of_this_cpu().phys_bits));
    }
}
