//! What keeps a window equal to a table, or emptier.
//!
//! A mirror is to a table what a TLB is to page tables: a cache that may lose any translation at any
//! time, and must never hold one that the table has lost. The calls below are made under the lock of
//! the table that holds the entries (see `continue-vs-zap` in [`crate::fault`]), so for one block they
//! never run at the same time; for different blocks they do.

use std::fmt;

use crate::addr::{FrameNo, Gfn, GfnRange};
use crate::prot::Prot;

/// A run of guest frames that a run of pool frames backs, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first guest frame.
    pub gfn: Gfn,
    /// The frame that backs it.
    pub frame: FrameNo,
    /// How many.
    pub frames: u64,
}

/// Keeps one guest's window.
pub trait Mirror: Send + Sync + fmt::Debug {
    /// The guest may now use these translations, and whoever waits for one of them goes on. What the
    /// window holds already stays.
    ///
    /// # Errors
    /// The window is as empty as before or holds a part; nothing is lost, the guest faults again.
    fn install(&self, run: Run, prot: Prot) -> Result<(), MirrorError>;

    /// As [`Mirror::install`], for pages that nobody waits for: a mirror that would pay much for them leaves
    /// them to the guest's own touch.
    ///
    /// # Errors
    /// As for [`Mirror::install`].
    fn offer(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        self.install(run, prot)
    }

    /// `run` has become one leaf: the window may hold parts of it, of the same frames, and shows the whole from
    /// now on, with a page as large if the memory has one.
    ///
    /// # Errors
    /// As for [`Mirror::install`].
    fn promote(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        self.install(run, prot)
    }

    /// The leaf at `range` is going to stay for a while: the mirror may now do for it what takes long. Called
    /// without a lock, and the leaf may be gone; nothing may depend on what comes of it.
    fn settle(&self, _range: GfnRange) {}

    /// No translation of `range` is left, and no vCPU uses an old one, when this returns.
    ///
    /// # Errors
    /// Old translations may be in use: the frames behind them must not be freed.
    fn zap(&self, range: GfnRange) -> Result<(), MirrorError>;

    /// As [`Mirror::zap`] of the run's range, before `run` is published and installed there with `prot`, under one lock:
    /// a mirror that puts one page in the place of another in one step may show it already.
    ///
    /// # Errors
    /// As for [`Mirror::zap`]. Nothing shows `run`.
    fn replace(&self, run: Run, _prot: Prot) -> Result<(), MirrorError> {
        self.zap(run.range())
    }

    /// As [`Mirror::zap`], of a leaf that the table has lost just now: a mirror that can tell that the window never showed
    /// those frames there has nothing to do.
    ///
    /// # Errors
    /// As for [`Mirror::zap`].
    fn zap_leaf(&self, leaf: Run) -> Result<(), MirrorError> {
        self.zap(leaf.range())
    }

    /// Translations of `range` that the window holds allow no more than `prot` when this returns.
    ///
    /// # Errors
    /// As for [`Mirror::zap`].
    fn protect(&self, range: GfnRange, prot: Prot) -> Result<(), MirrorError>;

    /// `run` is where pages of this range, all absent now, are going to lie: a mirror that pays for
    /// every change of direction can point the window there in one step.
    ///
    /// # Errors
    /// The window points where it did.
    fn remap(&self, run: Run) -> Result<(), MirrorError>;
}

impl<M: Mirror> Mirror for crate::sync::Arc<M> {
    fn install(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        (**self).install(run, prot)
    }

    fn offer(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        (**self).offer(run, prot)
    }

    fn promote(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        (**self).promote(run, prot)
    }

    fn settle(&self, range: GfnRange) {
        (**self).settle(range);
    }

    fn zap(&self, range: GfnRange) -> Result<(), MirrorError> {
        (**self).zap(range)
    }

    fn replace(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        (**self).replace(run, prot)
    }

    fn zap_leaf(&self, leaf: Run) -> Result<(), MirrorError> {
        (**self).zap_leaf(leaf)
    }

    fn protect(&self, range: GfnRange, prot: Prot) -> Result<(), MirrorError> {
        (**self).protect(range, prot)
    }

    fn remap(&self, run: Run) -> Result<(), MirrorError> {
        (**self).remap(run)
    }
}

/// A mirror call that failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the window at guest-physical {range} could not be changed: {step} failed: {cause}")]
pub struct MirrorError {
    /// The guest frames that were to be changed.
    pub range: GfnRange,
    /// The call that failed.
    pub step: &'static str,
    /// What it said.
    pub cause: String,
}

impl Run {
    /// The guest frames of it.
    ///
    /// # Panics
    /// If it is empty or past what the tables can map: no leaf is.
    pub fn range(self) -> GfnRange {
        GfnRange::new(self.gfn, self.frames).expect("a run of mapped frames lies inside the tables")
    }

    /// The frame that backs `gfn`, which is in it.
    pub fn frame_of(self, gfn: Gfn) -> FrameNo {
        self.frame.add(gfn.as_u64() - self.gfn.as_u64())
    }
}
