//! A machine that goes.
#![allow(unsafe_code, reason = "promises that a machine at rest writes no memory")]

use guest_mm::addr::GfnRange;
use guest_mm::postcopy::machine::{Departing, Failure};

use crate::machine::Live;
use crate::machine::dirty::DirtyTracker;

/// A running machine, as the page channel sees it.
pub(super) struct Goes<'l> {
    live: &'l Live,
    tracker: Option<DirtyTracker>,
}

impl Goes<'_> {
    pub(super) fn new(live: &Live) -> Goes<'_> {
        Goes { live, tracker: None }
    }
}

// SAFETY: a machine that is paused has its vCPUs outside of the guest, its devices at rest, and nothing pinned; `resume` is called in
// `go_on`, and by who asks for it when the guest is not under way any more.
unsafe impl Departing for Goes<'_> {
    fn description(&self) -> Vec<u8> {
        serde_json::to_vec(self.live.fingerprint()).expect("keys are strings and no value can fail")
    }

    fn start_tracking(&mut self) -> Result<(), Failure> {
        self.tracker = Some(DirtyTracker::start(self.live)?);
        Ok(())
    }

    fn take_dirty(&mut self, see: &mut dyn FnMut(GfnRange)) -> Result<(), Failure> {
        match &mut self.tracker {
            Some(tracker) => Ok(tracker.take(&mut |run| see(run))?),
            None => Ok(()),
        }
    }

    fn stop_tracking(&mut self) {
        self.tracker = None;
    }

    fn stop(&mut self) -> Result<Vec<u8>, Failure> {
        self.live.pause()?;
        match self.live.state() {
            Ok(state) => {
                // The sink takes them before it is ready.
                self.live.let_disks_go();
                Ok(state.to_bytes())
            }
            Err(unrest) => {
                self.live.resume();
                Err(unrest.into())
            }
        }
    }

    fn go_on(&mut self) {
        // A sink that has them lets them go when it ends. Two machines never write one disk: if it does not, this one rests
        // until it is resumed.
        if self.live.claim_disks().is_ok() {
            self.live.resume();
        }
    }
}
