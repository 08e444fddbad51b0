//! The vCPU threads of a machine.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

use super::{Kick, Vcpu};

/// The stack of a vCPU thread: its deepest call formats a report.
const STACK_BYTES: usize = 256 << 10;

/// The threads, from their start until they are joined.
#[derive(Debug, Default)]
pub struct Threads(Mutex<Vec<JoinHandle<()>>>);

impl Threads {
    /// Starts a thread for each vCPU. A kick waits until all are started, so it misses none.
    ///
    /// # Errors
    /// What the system says; those that were started go on until the run ends.
    pub fn start(&self, vcpus: Vec<Vcpu>) -> io::Result<()> {
        let mut threads = self.lock();
        for vcpu in vcpus {
            let name = format!("vcpu{}", vcpu.index);
            threads
                .push(Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || vcpu.run())?);
        }
        Ok(())
    }

    /// Gets every vCPU out of the guest.
    pub fn kick(&self) {
        self.lock().iter().for_each(Kick::kick);
    }

    /// Gets the vCPU number `index` out of the guest.
    pub fn kick_one(&self, index: usize) {
        if let Some(thread) = self.lock().get(index) {
            Kick::kick(thread);
        }
    }

    /// Waits for the end of every thread, once the run has ended.
    pub fn join(&self) {
        // Not under the lock: a fault thread may want to kick meanwhile.
        while self.lock().iter().any(|thread| !thread.is_finished()) {
            self.kick();
            sleep(Duration::from_micros(100));
        }
        for thread in self.lock().drain(..) {
            // A vCPU thread that panicked has said so already.
            let _ = thread.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
