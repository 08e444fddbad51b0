//! The identity map above 4 GiB, made when it is needed.
//!
//! The static tables of `entry.S` cover the low 4 GiB. To map more is to write memory, which CPL 3 may do here, and needs no
//! flush: translations that were not present are not cached (SDM vol. 3, 5.10.4.3).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::boot_params::Range;

const GIB: u64 = 1 << 30;
/// What one PDPT spans.
const SPAN: u64 = 512 * GIB;
/// Page directories to give away: GiB of address space above 4 GiB that can be mapped.
const POOL: usize = 64;

/// P, R/W, U/S, A, D.
const TABLE: u64 = 0x67;
/// `TABLE` and PS: a 2 MiB page.
const PAGE_2M: u64 = 0xe7;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

#[unsafe(link_section = ".bss.large")]
static DIRECTORIES: [Table; POOL] = [const { Table([const { AtomicU64::new(0) }; 512]) }; POOL];
static GIVEN: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    /// In `entry.S`. Atomics, because the processor reads it as we write.
    safe static pdpt: [AtomicU64; 512];
}

/// Maps `range`, by the GiB. Called before other CPUs are started.
pub fn reach(range: Range) {
    if range.is_empty() {
        return;
    }
    assert!(
        range.end <= SPAN,
        "cannot reach {:#x}: the identity map ends at {SPAN:#x}",
        range.end - 1
    );
    for gib in range.start / GIB..=(range.end - 1) / GIB {
        let entry = &pdpt[gib as usize];
        if entry.load(Ordering::Relaxed) != 0 {
            continue;
        }
        let Some(directory) = DIRECTORIES.get(GIVEN.fetch_add(1, Ordering::Relaxed)) else {
            panic!("cannot map {gib} GiB: {POOL} GiB above 4 GiB are mapped already");
        };
        for (i, slot) in directory.0.iter().enumerate() {
            slot.store(gib * GIB + ((i as u64) << 21) + PAGE_2M, Ordering::Relaxed);
        }
        // Release: the directory is whole before the page walker can find it (x86 keeps stores in order; so must rustc).
        entry.store(directory.0.as_ptr() as u64 + TABLE, Ordering::Release);
    }
}
