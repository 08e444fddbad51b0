//! A guest that comes, as those see it who ask its machine.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_mm::postcopy::report::{Phase, Progress};
use guest_mm::postcopy::sink::{Door, SinkConfig};
use guest_mm::postcopy::transport::{Address, Security};

use crate::control::{ReceiveRequest, ReceiveStatus};

use super::way::security;

/// What who asks and who receives have in common.
#[derive(Debug)]
pub(in crate::machine) struct Arriving {
    door: Arc<Door>,
    /// As it was told at first.
    security: Security,
    status: Mutex<ReceiveStatus>,
}

impl Arriving {
    /// A guest that is about to come as `sink` says.
    pub(super) fn new(sink: &SinkConfig) -> Arriving {
        let listens = sink.address.to_string();
        let status = Mutex::new(ReceiveStatus { listens, ..ReceiveStatus::default() });
        Arriving { door: Door::new(), security: sink.security.clone(), status }
    }

    /// Where its sink is told where to listen.
    pub(super) fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door)
    }

    /// Notes how far it is.
    pub(super) fn note(&self, progress: &Progress) {
        self.status().progress = *progress;
    }

    /// Lets its source connect where `request` says, from now on.
    ///
    /// # Errors
    /// Why not, in a sentence.
    pub(in crate::machine) fn listen(
        &self,
        request: &ReceiveRequest,
    ) -> Result<ReceiveStatus, String> {
        let address: Address = request.listen.parse().map_err(|error| format!("{error}"))?;
        let security = match &request.credentials {
            None => self.security.clone(),
            some => security(some.as_ref())?,
        };
        if self.status().progress.phase == Phase::Done {
            return Err("all of the guest is here: there is nothing to recover".to_owned());
        }
        let listens = self.door.listen_at(address, security).map_err(|error| error.to_string())?;
        let mut status = self.status();
        status.listens = listens.to_string();
        Ok(status.clone())
    }

    /// Held for a moment at a time; who panics under it has said so.
    fn status(&self) -> MutexGuard<'_, ReceiveStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
