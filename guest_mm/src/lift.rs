//! Pages that are to go elsewhere: which there are, and their bytes. Under the lock of the table that holds them, so right
//! against everything; while the guest runs, a page may be another a moment later, and its dirty tracking says so.

use crate::addr::{Gfn, GfnRange};
use crate::entry::{Entry, Marker};
use crate::fault::{FaultError, fault};
use crate::geometry::{FRAME_BYTES, Level};
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::AddressSpace;

/// What a page holds that is lifted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// Bytes, which were copied. They may all be zero.
    Bytes,
    /// Zeroes: the guest has not touched it, or gave it back.
    Zeroes,
    /// It is to come from elsewhere itself.
    Missing,
    /// Nobody may touch it: a guard or poisoned page.
    Forbidden,
}

/// Copies the pages from `first` on, all in one block, to `into`, a page each. Bytes of `into` stay what they are where a page
/// has none. What lies over an image is read from that. What each page holds.
///
/// # Panics
/// If `into` is no number of whole pages, or reaches out of the block.
pub(crate) fn lift<P: Protocol>(
    space: &AddressSpace<P>,
    first: Gfn,
    into: &mut [u8],
) -> Result<Vec<Held>, FaultError> {
    let page = FRAME_BYTES as usize;
    let count = into.len() / page;
    let block = GfnRange::entry(first, Level::PD);
    let fits =
        into.len().is_multiple_of(page) && first.as_u64() + count as u64 <= block.end().as_u64();
    assert!(fits, "{} bytes from guest frame {first} on are not pages of one block", into.len());
    let over = space.region(first).is_some_and(|region| region.over.is_some());
    let mut lifted = Vec::with_capacity(count);
    let gfns = || (0..count as u64).map(|index| first.add(index));
    if over {
        // Whoever reads it first brings it here.
        for gfn in gfns() {
            match fault(space, gfn.gpa(), Access::Read) {
                Ok(_) | Err(FaultError::Marked { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let cursor = space.table.cursor_on(first, Level::PT);
    let span = cursor.level().entry_frames();
    for (gfn, bytes) in gfns().zip(into.chunks_exact_mut(page)) {
        lifted.push(match cursor.entry(gfn) {
            Entry::Leaf(leaf) => {
                let frame = leaf.frame.add(gfn.offset_in(span));
                space.pool.memory().read(frame, 0, bytes);
                Held::Bytes
            }
            Entry::Marker(Marker::Missing) => Held::Missing,
            Entry::Marker(Marker::Guard | Marker::Poison) => Held::Forbidden,
            // Tables are below the cursor's, and locked: nobody is collapsing.
            _ => Held::Zeroes,
        });
    }
    Ok(lifted)
}

/// The runs of pages that may hold anything but zeroes, in order: what is mapped, what is to come, and all that lies over an
/// image.
pub(crate) fn holding<P: Protocol>(space: &AddressSpace<P>) -> Vec<GfnRange> {
    let mut runs =
        runs(space, |entry| matches!(entry, Entry::Leaf(_) | Entry::Marker(Marker::Missing)));
    let over = space.ram.iter().filter(|region| region.over.is_some());
    let images: Vec<GfnRange> = over.map(|region| region.range).collect();
    runs.retain(|run| !images.iter().any(|image| image.covers(*run)));
    runs.extend(images);
    runs.sort_unstable_by_key(|run| run.start());
    runs
}

/// The runs of pages that are to come from elsewhere, in order.
pub(crate) fn missing<P: Protocol>(space: &AddressSpace<P>) -> Vec<GfnRange> {
    runs(space, |entry| entry == Entry::Marker(Marker::Missing))
}

/// How many entries of `range`, all in one block, hold bytes, and how many it has.
fn leaves<P: Protocol>(space: &AddressSpace<P>, range: GfnRange) -> (usize, usize) {
    let cursor = space.table.cursor_on(range.start(), Level::PT);
    let step = cursor.level().entry_frames();
    let first = range.start().align_down(step).as_u64();
    let entries = (first..range.end().as_u64()).step_by(step as usize);
    let leaf = |gfn: &u64| matches!(cursor.entry(Gfn::new(*gfn)), Entry::Leaf(_));
    (entries.clone().filter(leaf).count(), entries.count())
}

/// Whether every page of `range`, all in one block, holds bytes.
pub(crate) fn holds_bytes<P: Protocol>(space: &AddressSpace<P>, range: GfnRange) -> bool {
    let (leaves, entries) = leaves(space, range);
    leaves == entries
}

/// Whether no page of `range`, all in one block, holds bytes.
pub(crate) fn holds_nothing<P: Protocol>(space: &AddressSpace<P>, range: GfnRange) -> bool {
    leaves(space, range).0 == 0
}

fn runs<P: Protocol>(space: &AddressSpace<P>, wanted: impl Fn(Entry) -> bool) -> Vec<GfnRange> {
    let mut runs: Vec<GfnRange> = Vec::new();
    // A marker above the level of blocks may span what is no RAM.
    let mut add = |part: GfnRange| {
        let joined = runs.last().and_then(|last| last.joined(part));
        match (joined, runs.last_mut()) {
            (Some(joined), Some(last)) => *last = joined,
            _ => runs.push(part),
        }
    };
    space.table.visit(|visited| {
        if !wanted(visited.entry) {
            return;
        }
        let span = GfnRange::entry(visited.gfn, visited.level);
        for region in &space.ram {
            region.range.intersection(span).into_iter().for_each(&mut add);
        }
    });
    runs
}
