//! A window that is a map, for tests: it checks what is asked of it, and fails when it is told to.

use std::collections::BTreeMap;

use crate::addr::{FrameNo, Gfn, GfnRange};
use crate::mirror::{Mirror, MirrorError, Run};
use crate::prot::Prot;
use crate::sync::{Arc, Lock, Rank};

/// The window: what a vCPU would use now.
#[derive(Debug, Default)]
pub(crate) struct FakeWindow {
    pages: BTreeMap<Gfn, (FrameNo, Prot)>,
    /// Calls until one fails.
    countdown: Option<u32>,
}

/// The mirror of it.
#[derive(Clone, Debug)]
pub(crate) struct Fake(Arc<Lock<FakeWindow>>);

impl Fake {
    pub(crate) fn new() -> Fake {
        Fake(Arc::new(Lock::new(Rank::Mirror, FakeWindow::default())))
    }

    /// What the guest's access to `gfn` would reach.
    pub(crate) fn translation(&self, gfn: Gfn) -> Option<(FrameNo, Prot)> {
        self.0.lock().pages.get(&gfn).copied()
    }

    /// A store of the guest's to `gfn`: before or after each call of the mirror's, as a zap waits for the
    /// accesses that are under way. Whether it was translated.
    #[cfg(loom)]
    pub(crate) fn access(&self, gfn: Gfn, store: impl FnOnce(FrameNo)) -> bool {
        let window = self.0.lock();
        let frame = window.pages.get(&gfn).filter(|page| page.1.writable()).map(|page| page.0);
        frame.map(store).is_some()
    }

    /// How many pages the window holds.
    #[cfg(not(loom))]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().pages.len()
    }

    /// The call after `calls` more fails, once.
    #[cfg(not(loom))]
    pub(crate) fn fail_after(&self, calls: Option<u32>) {
        self.0.lock().countdown = calls;
    }

    fn call(
        &self,
        range: GfnRange,
        step: &'static str,
        change: impl FnOnce(&mut BTreeMap<Gfn, (FrameNo, Prot)>),
    ) -> Result<(), MirrorError> {
        let window = &mut *self.0.lock();
        match &mut window.countdown {
            Some(0) => {
                window.countdown = None;
                return Err(MirrorError { range, step, cause: "injected".into() });
            }
            Some(calls) => *calls -= 1,
            None => {}
        }
        change(&mut window.pages);
        Ok(())
    }
}

impl Mirror for Fake {
    fn install(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        self.call(run.range(), "install", |pages| {
            for (i, gfn) in run.range().iter().enumerate() {
                pages.entry(gfn).or_insert((run.frame.add(i as u64), prot));
            }
        })
    }

    fn zap(&self, range: GfnRange) -> Result<(), MirrorError> {
        self.call(range, "zap", |pages| pages.retain(|&gfn, _| !range.contains(gfn)))
    }

    fn protect(&self, range: GfnRange, prot: Prot) -> Result<(), MirrorError> {
        self.call(range, "protect", |pages| {
            for (_, page) in pages.iter_mut().filter(|(gfn, _)| range.contains(**gfn)) {
                page.1 = prot;
            }
        })
    }

    fn remap(&self, run: Run) -> Result<(), MirrorError> {
        self.call(run.range(), "remap", |pages| {
            let range = run.range();
            assert!(
                pages.keys().all(|&gfn| !range.contains(gfn)),
                "the window was pointed elsewhere under pages in use"
            );
        })
    }
}
