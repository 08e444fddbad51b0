//! Pages of the same bytes become one frame, which nobody writes any more: the next store to one of them is given a
//! copy ([`crate::fault`]).
//!
//! Before a frame can be shared its exclusive mark goes, so that no device relies on it:
//!
//! ```text
//! pin-vs-unexclusive      pinner (device, read-only)      share (holds the page table's lock)
//!                         P1 walk to the PTE (guard)      X1 take the PTE out
//!                                                         X2 zap the window: no vCPU writes any more
//!                         P2 pin its frame; the same      X3 full barrier
//!                            instruction tells its mark   X4 its block pinned? then put the PTE back
//!                         P3 full barrier                 X5 the frame not pinned? then clear its mark, in one
//!                         P4 PTE unchanged?                  exchange; else put the PTE back
//!                         P5 (`pin-vs-collapse`)             write barrier
//!                         P6 marked? else P7              X6 put the PTE back, read-only
//!                         P7 unpin; a page of its own
//!                            first, and again from P1
//!
//! Invariant   a frame that P6 left pinned is nobody else's. Pins and mark are one word: either X5 sees the pin, or the
//!             pin sees the mark gone. A pin on the block is one through a huge leaf, which is gone since its split:
//!             either X4 sees the pin, or P4 sees the split.
//! Tolerated   a pin of P2 on a shared frame, until P7. A frame that has lost its mark and is mapped once: its next
//!             store is given a copy in vain.
//! Origin      Linux 088b8aa537c2; the mark is PageAnonExclusive, of 6c287605fd56. There pins and mark are two words: the
//!             look (X4) and the clearing (X5) are two steps, and a pin may come between. So the pinner looks at the mark
//!             again, behind its look at the PTE, and every step has its barrier: `TwoSteps`, which holds as well,
//!             and costs each pin a load that waits for its locked instruction.
//! Variants    of `TwoSteps`: `PinWithoutMark` looks at the mark with P2 and not again: device and guest part at the next
//!             store. `PinWithoutBarrier` skips P3, `PinWithoutReadBarrier` lets P6 overtake P4, `LookWithoutBarrier`
//!             skips X3, `RestoreWithoutBarrier` that before X6: processors with weaker order than x86 show it, and
//!             the models.
//! ```
//!
//! A page that is the same as a shared one is then replaced by it:
//!
//! ```text
//! dedup-vs-pin            pinner (device)                 share (holds the page table's lock)
//!                         P1 walk to the PTE (guard)      S1 take the PTE out
//!                                                         S2 zap the window: no vCPU writes any more
//!                         P2 pin its frame                   full barrier
//!                         P3 full barrier                 S3 pinned? then put the PTE back
//!                         P4 PTE unchanged? else P7       S4 other bytes? then put the PTE back
//!                         P7 unpin, and again from P1     S5 the PTE becomes the shared frame, read-only
//!                                                         S6 free the old frame
//!
//! Invariant   a frame that P4 left pinned is not replaced, and what is compared is not written to.
//! Tolerated   a pin of P2 on the old frame, until P7; freed under it, the frame waits as an orphan.
//! Origin      Linux 31dbd01f3143: KSM takes the entry out and flushes, and then compares the counts. uprobes replaced
//!             a page without a look at its pins.
//! Variants    `CountBeforeZap` does S3 before S1: a pin comes between. `NeverCount` skips S3. Either way a device goes
//!             on with a page that the guest has lost.
//! ```

#[cfg(all(test, loom))]
mod model;

use crate::addr::{FrameNo, Gfn};
use crate::entry::{Entry, Leaf, Source};
use crate::geometry::Level;
use crate::mirror::MirrorError;
use crate::protocol::{Protocol, Step, Steps};
use crate::space::AddressSpace;
use crate::sync::full_fence;
use crate::table::cursor::Cursor;

/// Why a page was not merged with another. Both are as they were.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MergeError {
    /// No small page of the guest's own is there.
    #[error("there is no small page of the guest's own")]
    NotOwn,
    /// It is shared already.
    #[error("it is shared already")]
    Already,
    /// A device has it pinned.
    #[error("a device has it pinned")]
    Pinned,
    /// Its bytes are others.
    #[error("its bytes are others")]
    Differs,
    /// A device has written to it since somebody asked, and the note of that would be lost with the page.
    #[error("a device has written to it, and nobody has asked for that yet")]
    Dirty,
    /// The window could not be changed; the page is as it was.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Makes the pages `one` and `other` one frame, if they have the same bytes.
pub(crate) fn merge<P: Protocol>(
    one: (&AddressSpace<P>, Gfn),
    other: (&AddressSpace<P>, Gfn),
) -> Result<(), MergeError> {
    let shared = match shared_frame(one.0, one.1) {
        Some(frame) => frame,
        None => make_shared(one.0, one.1)?,
    };
    let merged = replace(other.0, other.1, shared);
    one.0.pool.release(shared, 1);
    merged
}

/// The shared frame at `gfn`, if one is, with a reference for the caller.
pub(crate) fn shared_frame<P: Protocol>(space: &AddressSpace<P>, gfn: Gfn) -> Option<FrameNo> {
    let cursor = space.table.cursor_on(gfn, Level::PT);
    match cursor.entry(gfn) {
        Entry::Leaf(leaf) if leaf.source == Source::Guest && cursor.level() == Level::PT => {
            let frames = space.pool.frames();
            // The lock keeps the leaf's reference where it is.
            (!frames.is_exclusive(leaf.frame)).then(|| {
                frames.share(leaf.frame);
                leaf.frame
            })
        }
        _ => None,
    }
}

/// A page, out of sight, whose lock is held.
struct Page<'t, P: Protocol> {
    space: &'t AddressSpace<P>,
    cursor: Cursor<'t, P>,
    gfn: Gfn,
    leaf: Leaf,
}

/// Finds the small page at `gfn`, if it is the guest's own and exclusive.
fn find<P: Protocol>(space: &AddressSpace<P>, gfn: Gfn) -> Result<Page<'_, P>, MergeError> {
    let cursor = space.table.cursor_on(gfn, Level::PT);
    let small = cursor.level() == Level::PT;
    match cursor.entry(gfn) {
        Entry::Leaf(leaf) if small && leaf.source == Source::Guest => {
            match space.pool.frames().is_exclusive(leaf.frame) {
                true => Ok(Page { space, cursor, gfn, leaf }),
                false => Err(MergeError::Already),
            }
        }
        _ => Err(MergeError::NotOwn),
    }
}

impl<P: Protocol> Page<'_, P> {
    /// X1, X2 and X3; S1 and S2. If it fails, the page is back.
    fn hide(&mut self) -> Result<(), MergeError> {
        if let Err(error) = self.cursor.take_out(self.gfn).flush(&*self.space.mirror) {
            self.put_back(self.leaf);
            return Err(error.into());
        }
        if P::takes(Steps::X3_BARRIER_BEHIND_CLEAR) {
            full_fence();
        }
        Ok(())
    }

    fn is_pinned(&self) -> bool {
        self.space.pool.frames().is_pinned(self.leaf.frame)
    }

    /// Puts `leaf` in the page's place. Nobody waits for it: the guest's next access brings it into the window.
    fn put_back(&mut self, leaf: Leaf) {
        let _at_the_next_touch = self.cursor.put_back(self.gfn, self.leaf, leaf);
    }
}

/// Makes the page at `gfn` one that can be shared, in its place; its frame, with a reference for the caller.
pub(crate) fn make_shared<P: Protocol>(
    space: &AddressSpace<P>,
    gfn: Gfn,
) -> Result<FrameNo, MergeError> {
    let mut page = find(space, gfn)?;
    if page.is_pinned() {
        return Err(MergeError::Pinned);
    }
    P::at(Step::X1);
    page.hide()?;
    P::at(Step::X4);
    if page.is_pinned() {
        page.put_back(page.leaf);
        return Err(MergeError::Pinned);
    }
    P::at(Step::X5);
    let (frame, frames) = (page.leaf.frame, space.pool.frames());
    if !P::takes(Steps::X5_ONE_EXCHANGE) {
        frames.clear_exclusive(frame);
    } else if !frames.clear_exclusive_unpinned(frame) {
        page.put_back(page.leaf);
        return Err(MergeError::Pinned);
    }
    if space.pool.take_dirty(frame) {
        space.dirty_merged.lock().insert(gfn);
    }
    frames.share(frame);
    P::at(Step::X6);
    page.put_back(Leaf { prot: page.leaf.prot.shared(), ..page.leaf });
    Ok(frame)
}

/// Replaces the page at `gfn` by `shared`, a shared frame that the caller has a reference on, if it has the same bytes.
pub(crate) fn replace<P: Protocol>(
    space: &AddressSpace<P>,
    gfn: Gfn,
    shared: FrameNo,
) -> Result<(), MergeError> {
    let mut page = find(space, gfn)?;
    // A first look, so that the guest is not disturbed in vain.
    if P::takes(Steps::S3_LOOK_AT_PINS) && !P::takes(Steps::S1_TAKE_OUT_BEFORE_LOOK) {
        P::at(Step::S3);
    }
    let pinned = page.is_pinned();
    if pinned && P::takes(Steps::S3_LOOK_AT_PINS) {
        return Err(MergeError::Pinned);
    }
    if !space.pool.memory().is_same(page.leaf.frame, shared) {
        return Err(MergeError::Differs);
    }
    P::at(Step::S1);
    page.hide()?;
    if P::takes(Steps::S3_LOOK_AT_PINS) && P::takes(Steps::S1_TAKE_OUT_BEFORE_LOOK) {
        P::at(Step::S3);
        if page.is_pinned() {
            page.put_back(page.leaf);
            return Err(MergeError::Pinned);
        }
    }
    P::at(Step::S4);
    if !space.pool.memory().is_same(page.leaf.frame, shared) {
        page.put_back(page.leaf);
        return Err(MergeError::Differs);
    }
    P::at(Step::S5);
    let old = page.leaf.frame;
    if space.pool.frame_state(old).dirty {
        space.dirty_merged.lock().insert(gfn);
    }
    space.pool.frames().share(shared);
    page.put_back(Leaf::own(shared, page.leaf.prot.shared()));
    drop(page);
    P::at(Step::S6);
    space.pool.release(old, 1);
    Ok(())
}

/// Takes the page at `gfn` away if it is all zeroes and untouched memory reads as zeroes there.
pub(crate) fn drop_zeroes<P: Protocol>(
    space: &AddressSpace<P>,
    gfn: Gfn,
) -> Result<(), MergeError> {
    if space.region(gfn).is_none_or(|region| region.over.is_some()) || space.pager.is_some() {
        // What is absent over an image, or where pages are still to come, is not what reads as zeroes.
        return Err(MergeError::NotOwn);
    }
    let mut page = find(space, gfn)?;
    if page.is_pinned() {
        return Err(MergeError::Pinned);
    }
    if space.pool.frame_state(page.leaf.frame).dirty || space.dirty_merged.lock().contains(&gfn) {
        return Err(MergeError::Dirty);
    }
    if !page.leaf.prot.writable() {
        // What is absent is given the rights of RAM when it is touched.
        return Err(MergeError::NotOwn);
    }
    page.hide()?;
    let refused = match page.is_pinned() {
        true => Some(MergeError::Pinned),
        false if !space.pool.memory().is_zero(page.leaf.frame) => Some(MergeError::Differs),
        // With the pins gone, what they wrote is noted.
        false if space.pool.frame_state(page.leaf.frame).dirty => Some(MergeError::Dirty),
        false => None,
    };
    if let Some(why) = refused {
        page.put_back(page.leaf);
        return Err(why);
    }
    page.cursor.leave_out(gfn, page.leaf);
    let frame = page.leaf.frame;
    drop(page);
    space.pool.release(frame, 1);
    Ok(())
}
