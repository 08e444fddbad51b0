//! Whether the books are right: every counter against what the table holds, every frame against who
//! maps it. Run at rest; at teardown nothing at all may be left.

use std::collections::HashMap;

use crate::addr::{FrameNo, Gfn};
use crate::entry::{Entry, Marker, Source};
use crate::geometry::Level;
use crate::pool::{Owner, Pool};
use crate::prot::Prot;
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
    /// A frame that the scanner for duplicates keeps, and no leaf maps, is not in use, or its references do not match.
    #[error(
        "bad frame state: frame {frame}, kept for pages to come, is {owner:?} with {refs} references"
    )]
    BadKeptFrame {
        /// The frame.
        frame: FrameNo,
        /// Who may hand it out.
        owner: Owner,
        /// Its references.
        refs: u32,
    },
    /// A leaf says that its frame is the image's, and it is not.
    #[error("frame {frame}, mapped at guest frame {gfn}, is not the image's page there")]
    NotTheImage {
        /// The frame.
        frame: FrameNo,
        /// Where it is mapped.
        gfn: Gfn,
    },
    /// The guest can write to a frame that others use too.
    #[error("frame {frame}, mapped at guest frame {gfn} for writing, is not the guest's alone")]
    SharedWritable {
        /// The frame.
        frame: FrameNo,
        /// Where it is mapped.
        gfn: Gfn,
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

/// Frames that guests map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holdings {
    /// Frames that one leaf maps and no other will.
    pub(crate) exclusive: u64,
    /// How many leaves map each of the others, and one of the guest frames that do.
    pub(crate) shared: HashMap<FrameNo, (u32, Gfn)>,
}

impl Holdings {
    /// Adds another guest's.
    pub(crate) fn merge(&mut self, other: Holdings) {
        self.exclusive += other.exclusive;
        for (frame, (leaves, gfn)) in other.shared {
            self.shared.entry(frame).or_insert((0, gfn)).0 += leaves;
        }
    }

    /// How many frames they are.
    pub(crate) fn frames(&self) -> u64 {
        self.exclusive + self.shared.len() as u64
    }
}

/// Checks one guest; what it maps of its own.
///
/// # Errors
/// The first wrong book.
pub(crate) fn audit<P: Protocol>(space: &AddressSpace<P>) -> Result<Holdings, AuditError> {
    let mut found = Residency::default();
    found.tables[Level::ROOT.number() as usize - 1] = 1;
    let mut mapped: HashMap<FrameNo, Gfn> = HashMap::new();
    let mut holdings = Holdings::default();
    let mut wrong = None;
    space.table.visit(|visited| match visited.entry {
        Entry::Absent => {}
        Entry::Table(_) | Entry::Frozen(_) => {
            found.tables[visited.level.number() as usize - 2] += 1;
        }
        Entry::Marker(marker) => {
            found.markers[marker.index()] += 1;
            if marker == Marker::Returned {
                found.returned += visited.level.entry_frames();
            }
        }
        Entry::Leaf(leaf) => {
            let size = visited.level.number() as usize - 1;
            found.leaves[size] += 1;
            found.image[size] += u64::from(leaf.source == Source::Image);
            for i in 0..visited.level.entry_frames() {
                let (frame, gfn) = (leaf.frame.add(i), visited.gfn.add(i));
                let checked = match leaf.source {
                    Source::Image => check_image(space, gfn, frame),
                    Source::Guest => check_own(space, gfn, frame, &mut mapped, &mut holdings),
                };
                let rights = checked.and_then(|()| check_rights(space, gfn, frame, leaf.prot));
                if let Err(error) = rights {
                    wrong.get_or_insert(error);
                }
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
    Ok(holdings)
}

/// Checks a frame that a leaf maps as the guest's own.
fn check_own<P: Protocol>(
    space: &AddressSpace<P>,
    gfn: Gfn,
    frame: FrameNo,
    mapped: &mut HashMap<FrameNo, Gfn>,
    holdings: &mut Holdings,
) -> Result<(), AuditError> {
    let state = space.pool.frame_state(frame);
    let leaves = if state.exclusive {
        holdings.exclusive += 1;
        1
    } else {
        let (leaves, _) = holdings.shared.entry(frame).or_insert((0, gfn));
        *leaves += 1;
        *leaves
    };
    if let Some(first) = mapped.insert(frame, gfn)
        && state.exclusive
    {
        return Err(AuditError::MappedTwice { frame, first, second: gfn });
    }
    // Other guests may have references on a shared frame.
    let counted = if state.exclusive { state.refs == 1 } else { state.refs >= leaves };
    if state.owner != Owner::User || !counted {
        let (owner, refs) = (state.owner, state.refs);
        return Err(AuditError::BadFrameState { frame, gfn, owner, refs });
    }
    if space.region(gfn).is_none() {
        return Err(AuditError::OutsideRam { gfn });
    }
    Ok(())
}

/// Checks a frame that a leaf maps as its image's.
fn check_image<P: Protocol>(
    space: &AddressSpace<P>,
    gfn: Gfn,
    frame: FrameNo,
) -> Result<(), AuditError> {
    let region = space.region(gfn).ok_or(AuditError::OutsideRam { gfn })?;
    let page = region.over.as_ref().and_then(|over| over.image.loaded(over.page(region, gfn)));
    if page == Some(frame) { Ok(()) } else { Err(AuditError::NotTheImage { frame, gfn }) }
}

/// Checks that nobody can write to what others use too.
fn check_rights<P: Protocol>(
    space: &AddressSpace<P>,
    gfn: Gfn,
    frame: FrameNo,
    prot: Prot,
) -> Result<(), AuditError> {
    match prot.writable() && !space.pool.frame_state(frame).exclusive {
        true => Err(AuditError::SharedWritable { frame, gfn }),
        false => Ok(()),
    }
}

/// Checks that each frame that leaves of `holdings` share has as many references as leaves, and those that `kept` has
/// beside them.
pub(crate) fn check_shared(
    pool: &Pool,
    holdings: &Holdings,
    kept: &HashMap<FrameNo, u32>,
) -> Result<(), AuditError> {
    for (&frame, &(leaves, gfn)) in &holdings.shared {
        let state = pool.frame_state(frame);
        if state.refs != leaves + kept.get(&frame).copied().unwrap_or(0) {
            let (owner, refs) = (state.owner, state.refs);
            return Err(AuditError::BadFrameState { frame, gfn, owner, refs });
        }
    }
    Ok(())
}

/// Checks the frames of `kept` that no leaf of `holdings` maps; how many they are.
pub(crate) fn check_kept(
    pool: &Pool,
    holdings: &Holdings,
    kept: &HashMap<FrameNo, u32>,
) -> Result<u64, AuditError> {
    let mut alone = 0;
    for (&frame, &references) in kept {
        if holdings.shared.contains_key(&frame) {
            continue;
        }
        let state = pool.frame_state(frame);
        if state.owner != Owner::User || state.exclusive || state.refs != references {
            let (owner, refs) = (state.owner, state.refs);
            return Err(AuditError::BadKeptFrame { frame, owner, refs });
        }
        alone += 1;
    }
    Ok(alone)
}

/// Checks that nothing is left of a guest but its root table.
pub(crate) fn audit_torn_down<P: Protocol>(space: &AddressSpace<P>) -> Result<(), AuditError> {
    audit(space)?;
    let left = space.table.residency();
    let mut only_root = Residency::default();
    only_root.tables[Level::ROOT.number() as usize - 1] = 1;
    if left == only_root { Ok(()) } else { Err(AuditError::Left(Box::new(left))) }
}

/// Holds what the pool has in use against what the guests of it map, once all are at rest.
pub(crate) fn leaked(used: u64, mapped: u64) -> Result<(), AuditError> {
    match used.checked_sub(mapped) {
        Some(0) => Ok(()),
        Some(frames) => Err(AuditError::LeakedFrames { frames }),
        None => Err(AuditError::NotInUse { frames: mapped - used }),
    }
}
