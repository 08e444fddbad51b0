//! Whether the books are right: every counter against what the table holds, every frame against who
//! maps it. Run at rest; at teardown nothing at all may be left.

use std::collections::HashMap;

use crate::addr::{FrameNo, Gfn};
use crate::entry::Entry;
use crate::geometry::Level;
use crate::pool::Owner;
use crate::protocol::Protocol;
use crate::space::AddressSpace;
use crate::table::Residency;

/// A wrong book, by name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuditError {
    /// A counter differs from what the table holds.
    #[error("bad resident counter: the books say {:?}, the table holds {:?}", .0.counted, .0.found)]
    BadResidentCounter(Box<Mismatch>),
    /// Two leaves map one frame that is not shared.
    #[error("frame {frame} is mapped twice: at guest frames {first} and {second}")]
    MappedTwice {
        /// The frame.
        frame: FrameNo,
        /// One of its guest frames.
        first: Gfn,
        /// Another.
        second: Gfn,
    },
    /// A mapped frame is not in use, or its references do not match.
    #[error(
        "bad frame state: frame {frame}, mapped at guest frame {gfn}, is {owner:?} with {refs} references"
    )]
    BadFrameState {
        /// The frame.
        frame: FrameNo,
        /// Where it is mapped.
        gfn: Gfn,
        /// Who may hand it out.
        owner: Owner,
        /// Its references.
        refs: u32,
    },
    /// A leaf lies outside of RAM.
    #[error("guest frame {gfn} is mapped but is not RAM")]
    OutsideRam {
        /// The guest frame.
        gfn: Gfn,
    },
    /// After teardown something is left.
    #[error("left after teardown: {0:?}")]
    Left(Box<Residency>),
    /// After teardown frames are in use by nobody.
    #[error("{frames} frames leaked: in use, and mapped nowhere")]
    LeakedFrames {
        /// How many.
        frames: u64,
    },
    /// Reservations are left though no guest is.
    #[error("{frames} frames are reserved, and no guest is left")]
    LeftReserved {
        /// How many.
        frames: u64,
    },
    /// Frames wait for a device to let go of them though no guest is left, and so no device.
    #[error("{frames} frames are kept for devices, and no guest is left")]
    LeftOrphans {
        /// How many.
        frames: u64,
    },
    /// After teardown devices hold claims on frames.
    #[error("bad pin counter: {pins} pins are left, and no guest is")]
    LeakedPins {
        /// How many.
        pins: u64,
    },
    /// Frames are mapped that the pool holds for free.
    #[error("{frames} frames are mapped, and not in use by the pool's books")]
    NotInUse {
        /// How many.
        frames: u64,
    },
    /// The guest could not be taken down.
    #[error("teardown failed: {0}")]
    Teardown(String),
}

/// Two countings of one tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// By the books.
    pub counted: Residency,
    /// By the table.
    pub found: Residency,
}

/// Checks one guest; how many frames it maps.
///
/// # Errors
/// The first wrong book.
pub(crate) fn audit<P: Protocol>(space: &AddressSpace<P>) -> Result<u64, AuditError> {
    let mut found = Residency::default();
    found.tables[Level::ROOT.number() as usize - 1] = 1;
    let mut mapped: HashMap<FrameNo, Gfn> = HashMap::new();
    let mut wrong = None;
    space.table.visit(|visited| match visited.entry {
        Entry::Absent => {}
        Entry::Table(_) | Entry::Frozen(_) => {
            found.tables[visited.level.number() as usize - 2] += 1;
        }
        Entry::Marker(marker) => found.markers[marker.index()] += 1,
        Entry::Leaf(leaf) => {
            found.leaves[visited.level.number() as usize - 1] += 1;
            for i in 0..visited.level.entry_frames() {
                let (frame, gfn) = (leaf.frame.add(i), visited.gfn.add(i));
                let state = space.pool.frame_state(frame);
                let error = if let Some(first) = mapped.insert(frame, gfn) {
                    AuditError::MappedTwice { frame, first, second: gfn }
                } else if state.owner != Owner::User || state.refs != 1 {
                    AuditError::BadFrameState { frame, gfn, owner: state.owner, refs: state.refs }
                } else if space.region(gfn).is_none() {
                    AuditError::OutsideRam { gfn }
                } else {
                    continue;
                };
                wrong.get_or_insert(error);
            }
        }
    });
    if let Some(error) = wrong {
        return Err(error);
    }
    let counted = space.table.residency();
    if counted != found {
        return Err(AuditError::BadResidentCounter(Box::new(Mismatch { counted, found })));
    }
    Ok(mapped.len() as u64)
}

/// Checks that nothing is left of a guest but its root table.
pub(crate) fn audit_torn_down<P: Protocol>(space: &AddressSpace<P>) -> Result<(), AuditError> {
    audit(space)?;
    let left = space.table.residency();
    let only_root = left.tables.iter().sum::<u64>() == 1;
    if only_root && left.leaves == [0; 3] && left.markers == [0; 3] {
        Ok(())
    } else {
        Err(AuditError::Left(Box::new(left)))
    }
}

/// Holds what the pool has in use against what the guests of it map, once all are at rest.
pub(crate) fn leaked(used: u64, mapped: u64) -> Result<(), AuditError> {
    match used.checked_sub(mapped) {
        Some(0) => Ok(()),
        Some(frames) => Err(AuditError::LeakedFrames { frames }),
        None => Err(AuditError::NotInUse { frames: mapped - used }),
    }
}
