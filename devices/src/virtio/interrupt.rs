//! A device's interrupt: why it was raised, and the line.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A buffer was used (virtio 1.2, 4.2.2, `InterruptStatus` bit 0).
pub const USED_BUFFER: u32 = 1 << 0;
/// The configuration changed, or the device needs a reset (bit 1).
pub const CONFIG_CHANGE: u32 = 1 << 1;

/// The register `InterruptStatus`, and an event that a hypervisor makes an interrupt of. Without a line the guest polls.
#[derive(Debug, Default)]
pub struct Interrupt {
    status: AtomicU32,
    raised: AtomicU64,
    line: Option<EventFd>,
}

impl Interrupt {
    /// An interrupt that is raised through `line`.
    pub fn new(line: Option<EventFd>) -> Interrupt {
        Interrupt { line, ..Interrupt::default() }
    }

    /// Raises it for `why`.
    ///
    /// # Errors
    /// The event cannot be signalled.
    pub fn raise(&self, why: u32) -> io::Result<()> {
        // Release, with the Acquire of `status`: who sees the reason sees what it is about.
        self.status.fetch_or(why, Ordering::Release);
        self.raised.fetch_add(1, Ordering::Relaxed);
        self.line.as_ref().map_or(Ok(()), |line| line.write(1))
    }

    /// Why it was raised since it was last acknowledged.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// The driver has seen to `why`.
    pub fn acknowledge(&self, why: u32) {
        self.status.fetch_and(!why, Ordering::Release);
    }

    /// How often it was raised.
    pub fn count(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }

    /// The reasons as they were saved. The interrupt is raised again for them: it may have been lost on the way.
    pub(super) fn restore(&self, status: u32) {
        self.status.store(status, Ordering::Release);
        if status != 0 {
            let _ = self.raise(0);
        }
    }
}
