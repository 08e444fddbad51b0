//! A violation becomes a page.
//!
//! ```text
//! continue-vs-zap         fault                           unmap (balloon, teardown)
//!                         F1 lock the table page          Z1 lock the table page
//!                         F2 entry absent? else done      Z2 clear the entry; mark it, if the guest gives it back
//!                         F3 frame, zeroed                Z3 zap the window (waits for vCPUs)
//!                         F4 publish the leaf             Z4 unlock
//!                         F5 install it in the window     Z5 free the frame; given back, its bytes go to the host first,
//!                         F6 unlock                          if nobody else uses it or has it pinned
//!
//! Invariant   the window holds no translation that the table does not: F4 and F5 are one step for
//!             whoever takes the lock, and so are Z2 and Z3.
//! Tolerated   between F4 and F5 the window holds less than the table; a vCPU faults once more.
//! Origin      ours; KVM closes the same gap with a sequence number (`mmu_invalidate_seq`, Linux
//!             e930bffe95e1), because it cannot hold its lock over the look-up. We can: F5 is a
//!             microsecond.
//! Variant     `InstallAfterUnlock` does F5 after F6: the unmap comes between, the frame is freed and
//!             given to another, and the guest still reads it.
//! ```
//!
//! [`Published`](crate::table::zap::Published) borrows the cursor, so code that installs after the unlock does not compile unless it says
//! `after_unlock`.
//!
//! What a page begins as is the region's: [`zero`] fills memory of its own, [`image`] maps pages of an image. [`own`] copies
//! a page that others use too, for a store or for a device. What is still elsewhere, [`fetch()`] asks for.

mod fetch;
mod image;
#[cfg(all(test, loom))]
mod model;
mod own;
mod zero;

use crate::addr::{FrameNo, Gfn, Gpa, PageSize};
use crate::entry::Marker;
use crate::image::LoadError;
use crate::mirror::MirrorError;
use crate::pool::Exhausted;
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::{AddressSpace, Answer, RamRegion, count};
use crate::table::OutOfTables;
use crate::table::cursor::Cursor;
use crate::table::walk::Walked;

pub(crate) use fetch::fetch;
#[cfg(not(loom))]
pub(crate) use own::unmerge;
pub(crate) use own::unshare;
pub(crate) use zero::run_to_fill;
#[cfg(not(loom))]
pub(crate) use zero::{populate, prepare_next};

/// What a violation led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// The page, or the block or GiB around it, is mapped now.
    Fresh(PageSize),
    /// It was mapped already; it is in the window now.
    Present,
    /// Others use the page too, so the guest has a copy now.
    Copied,
    /// It is still elsewhere, and was asked for: who waits for it goes on when it is placed.
    Asked,
}

/// Why a violation cannot be served. The guest cannot go on past the access.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FaultError {
    /// The address is no RAM.
    #[error("{access} of guest-physical {gpa}, which is not RAM")]
    NotRam {
        /// Where.
        gpa: Gpa,
        /// What was tried.
        access: Access,
    },
    /// The page is marked.
    #[error("{access} of the {} page at guest-physical {gpa}", name(*marker))]
    Marked {
        /// Where.
        gpa: Gpa,
        /// What was tried.
        access: Access,
        /// How the page is marked.
        marker: Marker,
    },
    /// The page was to come from elsewhere, and never will.
    #[error(
        "{access} of guest-physical {gpa}, which has not arrived and never will: its source is gone"
    )]
    Lost {
        /// Where.
        gpa: Gpa,
        /// What was tried.
        access: Access,
    },
    /// A write where only reads are allowed.
    #[error("write to the read-only page at guest-physical {gpa}")]
    ReadOnly {
        /// Where.
        gpa: Gpa,
    },
    /// There is no frame for the page.
    #[error("{access} of guest-physical {gpa}: {cause}")]
    Exhausted {
        /// Where.
        gpa: Gpa,
        /// What was tried.
        access: Access,
        /// How large the pool is.
        cause: Exhausted,
    },
    /// The image that the page comes from does not give it.
    #[error("{access} of guest-physical {gpa}: {cause}")]
    Image {
        /// Where.
        gpa: Gpa,
        /// What was tried.
        access: Access,
        /// Why.
        cause: LoadError,
    },
    /// A thread of the service failed, and has said how.
    #[error("a thread that serves the guest's faults failed")]
    Failed,
    /// There is no table page for the entry.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// The window could not be changed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

fn name(marker: Marker) -> &'static str {
    match marker {
        Marker::Missing => "missing",
        Marker::Guard => "guard",
        Marker::Poison => "poisoned",
        Marker::Returned => "returned",
    }
}

/// Serves the violation of `access` at `gpa`: when this returns, the page is mapped and the vCPU that
/// waited for it runs.
pub(crate) fn fault<P: Protocol>(
    space: &AddressSpace<P>,
    gpa: Gpa,
    access: Access,
) -> Result<Filled, FaultError> {
    let result = serve(space, gpa, access);
    let counters = &space.counters;
    match &result {
        Ok(Filled::Fresh(size)) => count(&counters.filled[size.level_number() as usize - 1], 1),
        Ok(Filled::Present) => count(&counters.present, 1),
        Ok(Filled::Copied) => count(&counters.unshared, 1),
        Ok(Filled::Asked) => count(&counters.asked, 1),
        Err(_) => count(&counters.refused, 1),
    }
    result
}

fn serve<P: Protocol>(
    space: &AddressSpace<P>,
    gpa: Gpa,
    access: Access,
) -> Result<Filled, FaultError> {
    let region = space.region(gpa.gfn()).ok_or(FaultError::NotRam { gpa, access })?;
    let served = match (&region.over, access) {
        (None, _) => zero::serve(space, region, gpa, access),
        (Some(over), Access::Read) => image::serve_read(space, region, over, gpa),
        (Some(over), Access::Write) => image::serve_write(space, region, over, gpa),
    };
    match (served, &space.pager) {
        (Err(FaultError::Marked { marker: Marker::Missing, .. }), Some(pager)) => {
            // Without a lock. If it was placed meanwhile, who waits has been told.
            match (pager.0)(gpa) {
                Answer::Asked => Ok(Filled::Asked),
                Answer::Lost => Err(FaultError::Lost { gpa, access }),
            }
        }
        (served, _) => served,
    }
}

/// A frame for the page at `gfn`, absent, missing or returned, its bytes whatever they are, where the page should lie.
pub(crate) fn frame_to_fill<P: Protocol>(
    space: &AddressSpace<P>,
    region: &RamRegion,
    cursor: &mut Cursor<'_, P>,
    gfn: Gfn,
    access: Access,
) -> Result<FrameNo, FaultError> {
    let gpa = gfn.gpa();
    if region.over.is_some() {
        let exhausted = |cause| FaultError::Exhausted { gpa, access, cause };
        return own::frame_for_copy(space, region, cursor, gfn).map_err(exhausted);
    }
    zero::frame_to_fill(space, region, cursor, gfn).map_err(|error| error.at(gpa, access))
}

/// The entry for `gfn`, for decisions that are made again under the lock.
fn walk<P: Protocol>(space: &AddressSpace<P>, gfn: Gfn) -> Walked {
    space.table.walk(&space.table.enter(), gfn)
}
