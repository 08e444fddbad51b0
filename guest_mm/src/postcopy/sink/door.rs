//! Where a sink listens, while it runs: who operates it may say another place.

use std::collections::VecDeque;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::postcopy::error::Trouble;
use crate::postcopy::transport::{Address, Limits, Listener, Security};

/// How long a sink may take to hear what it is told: it looks many times a second.
const PATIENCE: Duration = Duration::from_secs(2);

/// What tells a sink where to listen.
#[derive(Debug, Default)]
pub struct Door {
    orders: Mutex<VecDeque<Order>>,
}

#[derive(Debug)]
struct Order {
    address: Address,
    security: Security,
    done: Sender<Result<Address, String>>,
}

impl Door {
    /// One that nobody has said anything at.
    #[must_use]
    pub fn new() -> Arc<Door> {
        Arc::default()
    }

    /// Lets the sink listen at `address` from now on, and no more where it did; who is connected stays so. Where it listens: with
    /// the port, if it was to choose one.
    ///
    /// # Errors
    /// [`Trouble::Connect`]: it cannot listen there, and goes on where it did, or no sink waits for anybody.
    pub fn listen_at(&self, address: Address, security: Security) -> Result<Address, Trouble> {
        let (done, told) = channel();
        self.orders().push_back(Order { address, security, done });
        match told.recv_timeout(PATIENCE) {
            Ok(listens) => listens.map_err(Trouble::Connect),
            Err(_) => {
                self.orders().clear();
                Err(Trouble::Connect("no sink waits for a source here".to_owned()))
            }
        }
    }

    /// Does what `listener` was told meanwhile.
    pub(super) async fn attend(&self, listener: &mut Listener, limits: Limits) {
        loop {
            let Some(order) = self.orders().pop_front() else { return };
            let Order { address, security, done } = order;
            let listens = if listener.is_at(&address) {
                listener.secure_with(security);
                Ok(())
            } else {
                let bound = Listener::bind(&address, security, limits).await;
                bound.map(|other| *listener = other).map_err(|error| error.to_string())
            };
            // Who has not waited for it does not want to know.
            let _ = done.send(listens.map(|()| listener.address().clone()));
        }
    }

    /// Held for a moment at a time; who panics under it has said so.
    fn orders(&self) -> MutexGuard<'_, VecDeque<Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
