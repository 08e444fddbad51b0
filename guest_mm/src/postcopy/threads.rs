//! A thread for each stream, with a runtime of its own, until the connection is over.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, Scope};

use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::error::Trouble;
use super::transport::{Connection, ReadHalf, WriteHalf};
use super::wire::Role;
use crate::schedule;

/// Whether a connection is given up.
#[derive(Debug, Default)]
pub(super) struct Over {
    is: AtomicBool,
    told: Notify,
}

/// Gives the connection up, however a leg ends.
pub(super) struct Ends<'o>(&'o Over);

impl Over {
    pub(super) fn when_dropped(&self) -> Ends<'_> {
        Ends(self)
    }

    /// Runs `serve` to its end, or until the connection is over: a peer that is silent holds up nobody.
    pub(super) fn or(
        &self,
        serve: impl Future<Output = Result<(), Trouble>>,
    ) -> Result<(), Trouble> {
        runtime()?.block_on(async {
            tokio::select! {
                served = serve => served,
                () = self.told() => Ok(()),
            }
        })
    }

    async fn told(&self) {
        let told = self.told.notified();
        tokio::pin!(told);
        // From here on it is told: what was before is seen.
        told.as_mut().enable();
        if !self.is.load(Ordering::Acquire) {
            told.await;
        }
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.is.store(true, Ordering::Release);
        self.0.told.notify_waiters();
    }
}

/// A thread's own runtime.
pub(super) fn runtime() -> Result<Runtime, Trouble> {
    let failed = |source| Trouble::System { what: "starting a runtime", source };
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)
}

/// The directions of `connection`, woken on this thread from now on.
pub(super) fn split(connection: Connection) -> Result<(ReadHalf, WriteHalf), Trouble> {
    let failed = |source| Trouble::System { what: "moving a stream to its thread", source };
    connection.split().map_err(failed)
}

/// Starts the thread of the stream of `role` in `scope`; `failed` hears how it ended, if not well.
pub(super) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    role: Role,
    serve: impl FnOnce() -> Result<(), Trouble> + Send + 'scope,
    failed: impl Fn(Trouble) + Send + Clone + 'scope,
) {
    let tell = failed.clone();
    let served = move || {
        if role == Role::Urgent {
            schedule::promptly();
        }
        if let Err(trouble) = serve() {
            tell(trouble);
        }
    };
    if let Err(source) = Builder::new().name(role.to_string()).spawn_scoped(scope, served) {
        failed(Trouble::System { what: "starting a stream's thread", source });
    }
}
