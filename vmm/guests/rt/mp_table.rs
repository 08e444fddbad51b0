//! The processors that the MP table lists (Intel MultiProcessor Specification 1.4, chapter 4).

/// CPUs that there are stacks and task-state segments for.
pub const MAX_CPUS: usize = 32;

const FLOATING_SIGNATURE: u32 = u32::from_le_bytes(*b"_MP_");
const TABLE_SIGNATURE: u32 = u32::from_le_bytes(*b"PCMP");
const HEADER: u64 = 44;
const PROCESSOR: u8 = 0;
const PROCESSOR_ENABLED: u8 = 1 << 0;

/// Local APIC IDs of the enabled processors.
pub struct Processors {
    ids: [u8; MAX_CPUS],
    /// How many are listed, of which the first `MAX_CPUS` have their IDs kept.
    pub count: usize,
}

impl Processors {
    /// The IDs that are kept.
    pub fn ids(&self) -> &[u8] {
        &self.ids[..self.count.min(MAX_CPUS)]
    }
}

/// Looks where the specification says: the first KiB of the EBDA, the last of base memory, the BIOS ROM.
pub fn find() -> Option<Processors> {
    const EBDA_SEGMENT: u64 = 0x40e;
    let ebda = u64::from(u16::from_le_bytes([byte(EBDA_SEGMENT), byte(EBDA_SEGMENT + 1)])) << 4;
    [(ebda, 1024), (0x9_fc00, 1024), (0xf_0000, 0x1_0000)]
        .into_iter()
        .filter(|&(start, _)| start != 0)
        .flat_map(|(start, len)| (start..start + len).step_by(16))
        .find(|&at| {
            word(at) == FLOATING_SIGNATURE && sums_to_zero(at, u64::from(byte(at + 8)) * 16)
        })
        .and_then(|floating| processors(u64::from(word(floating + 4))))
}

fn processors(table: u64) -> Option<Processors> {
    let len = u64::from(word(table + 4) & 0xffff);
    if table == 0 || word(table) != TABLE_SIGNATURE || !sums_to_zero(table, len) {
        return None;
    }
    let entries = word(table + 34) & 0xffff;
    let mut found = Processors { ids: [0; MAX_CPUS], count: 0 };
    let mut at = table + HEADER;
    for _ in 0..entries {
        if byte(at) != PROCESSOR {
            at += 8;
            continue;
        }
        if byte(at + 3) & PROCESSOR_ENABLED != 0 {
            if let Some(id) = found.ids.get_mut(found.count) {
                *id = byte(at + 1);
            }
            found.count += 1;
        }
        at += 20;
    }
    Some(found)
}

fn sums_to_zero(start: u64, len: u64) -> bool {
    len != 0 && (start..start + len).fold(0u8, |sum, at| sum.wrapping_add(byte(at))) == 0
}

fn word(at: u64) -> u32 {
    u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)])
}

fn byte(at: u64) -> u8 {
    // SAFETY: the low 4 GiB are mapped, and a read of memory or of nothing has no effect there; volatile, since these bytes
    // are no Rust object's.
    unsafe { (at as *const u8).read_volatile() }
}
