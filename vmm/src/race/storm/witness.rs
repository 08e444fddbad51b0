//! The guest: what it says at the end, and what it has left in memory.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use guest_mm::Guest;
use guest_mm::addr::{Gpa, GpaRange};
use guest_mm::copy::NotMapped;
use guest_mm::pin::PinError;
use guest_mm::prot::Access;
use guest_mm::protocol::Protocol;
use vm_memory::VolatileMemory;

use crate::rig::{Ran, told};

use super::place::{BLOCK, PAGE, PASSES, Place, STOP};
use super::report::Verdict;
use super::slots::Log;

/// How its last line begins.
const LAST_LINE: &str = "touch: pages=";

/// Reads the guest's last line.
///
/// # Errors
/// How it ended, if it has none.
pub(super) fn verdict(ran: &Ran) -> Result<Verdict, String> {
    let field = |key| told(&ran.console, LAST_LINE, key);
    let read = || {
        let (passes, seen) = (field("passes")?, field("seen")?);
        Some(Verdict { passes, seen, wrong: field("wrong")?, backwards: field("backwards")? })
    };
    read().ok_or_else(|| format!("{}; its console: {:?}", ran.ending, ran.console))
}

/// Passes that the guest has done.
pub(super) fn passes<P: Protocol>(guest: &Guest<P>, place: Place) -> u64 {
    let mut word = [0; 8];
    let at = Gpa::new(place.control().as_u64() + 8 * PASSES);
    guest.read(at, &mut word).map_or(0, |()| u64::from_le_bytes(word))
}

/// Tells the guest, by DMA, to make its last pass.
pub(super) fn stop<P: Protocol>(guest: &Guest<P>, place: Place) -> Result<(), PinError> {
    let page = GpaRange::new(place.control(), PAGE).expect("the control page is a page");
    let pinned = guest.pin(page, Access::Write)?;
    for slice in pinned.slices() {
        let word = slice.get_atomic_ref::<AtomicU64>(8 * STOP as usize);
        word.expect("the control page has words").store(1, Relaxed);
    }
    Ok(())
}

/// What is wrong with the memory at rest: slots that do not hold what their device wrote last, and slots whose last number
/// has no acknowledgement.
pub(super) fn inspect<P: Protocol>(
    guest: &Guest<P>,
    place: Place,
    logs: &[Log],
) -> Result<(u64, u64), NotMapped> {
    let (mut lost, mut unacknowledged) = (0, 0);
    let mut words = vec![0; 16 * logs.len()];
    for page in (0..place.nr_pages()).filter(|page| page % BLOCK != BLOCK - 1) {
        guest.read(place.page(page), &mut words)?;
        let word = |index: usize| {
            let bytes = words[8 * index..].first_chunk().expect("it holds two words a device");
            u64::from_le_bytes(*bytes)
        };
        for (slot, log) in logs.iter().enumerate() {
            lost += u64::from(word(slot) != log.last[page as usize]);
            unacknowledged += u64::from(word(logs.len() + slot) != word(slot));
        }
    }
    Ok((lost, unacknowledged))
}
