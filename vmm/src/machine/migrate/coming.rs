//! A machine that comes.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use guest_mm::postcopy::machine::{Coming, Failure};

use crate::machine::{Live, Machine};
use crate::state::{Fingerprint, MachineState};

/// A machine that has not run, as the page channel sees it.
pub(super) struct Comes {
    pub(super) live: Live,
    /// Gone once it runs.
    pub(super) machine: Arc<Mutex<Option<Machine>>>,
    /// Heard by who runs it.
    pub(super) start: Sender<()>,
}

impl Coming for Comes {
    fn accept(&mut self, description: &[u8]) -> Result<(), Failure> {
        let theirs: Fingerprint = serde_json::from_slice(description)
            .map_err(|error| format!("its machine is described in another way: {error}"))?;
        match theirs.difference(self.live.fingerprint()) {
            None => Ok(()),
            Some(what) => Err(what.into()),
        }
    }

    fn prepare(&mut self, state: Vec<u8>) -> Result<(), Failure> {
        let state = MachineState::from_bytes(&state)?;
        self.live.claim_disks()?;
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = machine.as_mut().ok_or("the machine is being ended")?;
        Ok(machine.restore(&state)?)
    }

    fn start(&mut self) -> Result<(), Failure> {
        Ok(self.start.send(())?)
    }
}
