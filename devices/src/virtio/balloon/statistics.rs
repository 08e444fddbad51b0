//! What a guest tells of its memory (virtio 1.2, 5.5.6.3).

use serde::{Deserialize, Serialize};

/// Bytes of a pair: a tag of 16 bits, and 64 bits of value, packed.
pub(super) const PAIR: usize = 10;
/// Bytes of a buffer that are looked at: three times what there are tags for.
pub(super) const MOST: usize = 48 * PAIR;

/// What the tags 0, 1, ... stand for: 5.5.6.4, and behind the tenth what Linux tells beside.
const NAMES: [&str; 16] = [
    "guest_swapped_in_bytes",
    "guest_swapped_out_bytes",
    "guest_major_faults",
    "guest_minor_faults",
    "guest_free_bytes",
    "guest_total_bytes",
    "guest_available_bytes",
    "guest_cache_bytes",
    "guest_hugetlb_allocated",
    "guest_hugetlb_failed",
    "guest_oom_kills",
    "guest_allocation_stalls",
    "guest_scanned_async",
    "guest_scanned_direct",
    "guest_reclaimed_async",
    "guest_reclaimed_direct",
];

/// The last that was told, by tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Statistics([Option<u64>; NAMES.len()]);

impl Statistics {
    /// What `pairs` say; tags that are not known say nothing.
    pub(super) fn parse(pairs: &[u8]) -> Statistics {
        let mut told = Statistics::default();
        for pair in pairs.chunks_exact(PAIR) {
            let (tag, value) = pair.split_at(2);
            let tag = u16::from_le_bytes([tag[0], tag[1]]);
            if let (Some(place), Ok(value)) = (told.0.get_mut(usize::from(tag)), value.try_into()) {
                *place = Some(u64::from_le_bytes(value));
            }
        }
        told
    }

    /// What was told, by name.
    pub(super) fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.0).filter_map(|(name, value)| Some((name, value?)))
    }
}
