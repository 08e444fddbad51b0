//! Obligations towards the mirror, as types.
//!
//! Both borrow the cursor whose lock they were made under, so the lock cannot be released before they
//! are met: the compiler keeps `continue-vs-zap` closed.

use std::marker::PhantomData;

use crate::addr::{FrameNo, GfnRange};
use crate::entry::{Leaf, Source};
use crate::mirror::{Mirror, MirrorError, Run};
use crate::pool::{Pool, ToHost};
use crate::prot::Prot;

/// A leaf that the table has and the window does not. Dropping it is legal, and costs the guest a fault.
#[must_use = "a published leaf is only used by the guest once it is installed"]
#[derive(Debug)]
pub(crate) struct Published<'c> {
    run: Run,
    prot: Prot,
    lock: PhantomData<&'c mut ()>,
}

/// A published leaf whose lock is gone: the historical variant of `continue-vs-zap`.
#[derive(Debug)]
pub(crate) struct Late(Run, Prot);

impl Published<'_> {
    pub(super) fn new(run: Run, prot: Prot) -> Self {
        Published { run, prot, lock: PhantomData }
    }

    /// Puts the translation into the window (F5).
    pub(crate) fn install(self, mirror: &dyn Mirror) -> Result<(), MirrorError> {
        mirror.install(self.run, self.prot)
    }

    /// Puts the translation into the window where that is cheap: nobody waits for it.
    pub(crate) fn offer(self, mirror: &dyn Mirror) -> Result<(), MirrorError> {
        mirror.offer(self.run, self.prot)
    }

    /// Has the window show one leaf where it may show the parts.
    pub(crate) fn promote(self, mirror: &dyn Mirror) -> Result<(), MirrorError> {
        mirror.promote(self.run, self.prot)
    }

    /// Lets go of the lock first: what [`crate::protocol::Steps::F5_INSTALL_UNDER_LOCK`] rules out.
    pub(crate) fn after_unlock(self) -> Late {
        Late(self.run, self.prot)
    }
}

impl Late {
    pub(crate) fn install(self, mirror: &dyn Mirror) -> Result<(), MirrorError> {
        mirror.install(self.0, self.1)
    }
}

/// Entries that the table has lost or weakened and the window may still have.
#[must_use = "the window may still hold what the table has lost: flush it"]
#[derive(Debug)]
pub(crate) struct Zap<'c> {
    range: GfnRange,
    /// The right that is left, or none when the entries are gone.
    left: Option<Prot>,
    /// What lay there, if it was one leaf.
    leaf: Option<Run>,
    frames: FrameRuns,
    flushed: bool,
    lock: PhantomData<&'c mut ()>,
}

impl Zap<'_> {
    pub(super) fn unmapped(range: GfnRange, frames: FrameRuns) -> Self {
        Zap { range, left: None, leaf: None, frames, flushed: false, lock: PhantomData }
    }

    pub(super) fn taken_out(leaf: Run) -> Self {
        let (range, frames) = (leaf.range(), FrameRuns::default());
        Zap { range, left: None, leaf: Some(leaf), frames, flushed: false, lock: PhantomData }
    }

    pub(super) fn protected(range: GfnRange, prot: Prot) -> Self {
        Zap {
            range,
            left: Some(prot),
            leaf: None,
            frames: FrameRuns::default(),
            flushed: false,
            lock: PhantomData,
        }
    }

    /// Brings the window in step; then nobody can reach the frames any more.
    ///
    /// # Errors
    /// The window may be ahead of the table. The frames are not handed out: they stay in use, and the
    /// audit will say so.
    pub(crate) fn flush(mut self, mirror: &dyn Mirror) -> Result<Unreachable, MirrorError> {
        self.flushed = true;
        match (self.left, self.leaf) {
            (Some(prot), _) => mirror.protect(self.range, prot)?,
            (None, Some(leaf)) => mirror.zap_leaf(leaf)?,
            (None, None) => mirror.zap(self.range)?,
        }
        Ok(Unreachable(std::mem::take(&mut self.frames)))
    }
}

impl Zap<'_> {
    /// As [`Zap::flush`] of a leaf in whose place `leaf` is put back, under the same lock: the window may show that from
    /// now on.
    pub(crate) fn flush_for(mut self, mirror: &dyn Mirror, leaf: Leaf) -> Result<(), MirrorError> {
        debug_assert!(self.left.is_none() && self.frames.0.is_empty());
        self.flushed = true;
        let (gfn, frames) = (self.range.start(), self.range.frames());
        mirror.replace(Run { gfn, frame: leaf.frame, frames }, leaf.prot)
    }

    /// Flushes nothing: what [`crate::protocol::Steps::T3_LEAF_BEFORE_EMPTYING`] rules out.
    pub(crate) fn forget(mut self) {
        self.flushed = true;
    }
}

impl Drop for Zap<'_> {
    fn drop(&mut self) {
        // A silent drop would leave the guest with memory that is about to be someone else's.
        if !self.flushed && !std::thread::panicking() {
            panic!("a zap of guest-physical {} was dropped without a flush", self.range);
        }
    }
}

/// Frames that no table and no window leads to any more.
#[must_use = "frames that nobody can reach are lost until they are released"]
#[derive(Debug, Default)]
pub(crate) struct Unreachable(FrameRuns);

impl Unreachable {
    /// These too: what was flushed covers them.
    pub(super) fn with(mut self, frames: FrameRuns) -> Unreachable {
        self.0.0.extend(frames.0);
        self
    }

    /// Those of `other` too.
    pub(crate) fn join(&mut self, other: Unreachable) {
        other.0.0.into_iter().for_each(|(first, frames)| self.0.push(first, frames));
    }

    /// These too: no leaf ever led to them.
    pub(crate) fn join_unused(&mut self, frames: Vec<FrameNo>) {
        frames.into_iter().for_each(|frame| self.0.push(frame, 1));
    }

    /// Gives them back to the pool, and what nobody uses any more to the host: in as few calls as their order allows.
    pub(crate) fn release_to_host(self, pool: &Pool) -> ToHost {
        let mut runs = self.0.0;
        runs.sort_unstable();
        let mut joined = FrameRuns::default();
        runs.into_iter().for_each(|(first, frames)| joined.push(first, frames));
        joined.0.iter().map(|&(first, frames)| pool.release_to_host(first, frames)).sum()
    }

    /// Gives them back to the pool they came from; how many.
    pub(crate) fn release(self, pool: &Pool) -> u64 {
        for &(first, frames) in &self.0.0 {
            pool.release(first, frames);
        }
        self.0.0.iter().map(|run| run.1).sum()
    }
}

/// Runs of frames, neighbours joined.
#[derive(Debug, Default)]
pub(crate) struct FrameRuns(Vec<(FrameNo, u64)>);

impl FrameRuns {
    /// Adds the frames of `leaf`, if the guest has a reference on them.
    pub(super) fn push_leaf(&mut self, leaf: Leaf, frames: u64) {
        if leaf.source == Source::Guest {
            self.push(leaf.frame, frames);
        }
    }

    fn push(&mut self, first: FrameNo, frames: u64) {
        match self.0.last_mut() {
            Some((start, len)) if start.add(*len) == first => *len += frames,
            _ => self.0.push((first, frames)),
        }
    }
}
