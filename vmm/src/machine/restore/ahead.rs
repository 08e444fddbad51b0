//! What a machine needed first the last time is made ready beside it, so that it need not ask.
//!
//! What it needs to begin with is made ready while the rest of the machine is. All else waits until it runs, and a moment longer: a
//! block takes a processor most of a millisecond, much of it inside the kernel, and the first that a machine says is waited for.
//! A guest that comes to the rest earlier has it made ready by its own violations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, park, park_timeout};
use std::time::{Duration, Instant};

use guest_mm::image::Needed;

use crate::machine::ServedRam;
use crate::snapshot::WorkingSet;

/// So long a machine that runs has the processors to itself: some three times what it takes to its first byte.
const GRACE: Duration = Duration::from_millis(3);

/// What becomes of pages that are going to be stored to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stored {
    /// They are the guest's own at once.
    Own,
    /// They are read once for all guests over the image; a store copies them.
    Shared,
}

/// What is to be made ready.
#[derive(Debug)]
pub(super) struct Plan(Vec<Needed>);

/// A thread that makes pages ready. It ends when this is dropped.
#[derive(Debug)]
pub struct Ahead {
    signals: Arc<Signals>,
    thread: Option<JoinHandle<()>>,
}

/// What that thread is told. It looks when it is unparked, and between two blocks.
#[derive(Debug, Default)]
struct Signals {
    runs: AtomicBool,
    stop: AtomicBool,
}

impl Plan {
    pub(super) fn new(pages: &WorkingSet, stored: Stored) -> Plan {
        let pages = pages.0.iter().map(|&needed| match stored {
            Stored::Own => needed,
            Stored::Shared => Needed { stored: false, ..needed },
        });
        Plan(pages.collect())
    }

    /// Begins with it. None where there is no thread to be had: then the guest asks for its pages.
    pub(super) fn start(self, ram: &Arc<ServedRam>) -> Option<Ahead> {
        let signals = Arc::new(Signals::default());
        let thread = {
            let (ram, signals) = (Arc::clone(ram), Arc::clone(&signals));
            Builder::new().name("ahead".into()).spawn(move || self.work(&ram, &signals)).ok()?
        };
        Some(Ahead { signals, thread: Some(thread) })
    }

    fn work(&self, ram: &ServedRam, signals: &Signals) {
        let Some(image) = ram.commons().template() else { return };
        let stops = || signals.stop.load(Ordering::Relaxed);
        ram.guest().expect(image, &self.0);
        let mut more = ram.guest().make_next_ready();
        while !stops() && !signals.runs.load(Ordering::Relaxed) {
            park();
        }
        let begun = Instant::now();
        while !stops() && begun.elapsed() < GRACE {
            park_timeout(GRACE - begun.elapsed().min(GRACE));
        }
        while more && !stops() {
            more = ram.guest().make_next_ready();
        }
    }
}

impl Ahead {
    /// The machine runs: it goes on with the rest.
    pub(in crate::machine) fn go_on(&self) {
        self.tell(&self.signals.runs);
    }

    fn tell(&self, signal: &AtomicBool) {
        signal.store(true, Ordering::Relaxed);
        // Unparking comes after the store, for who is parked and for who is about to be.
        self.thread.iter().for_each(|thread| thread.thread().unpark());
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.tell(&self.signals.stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
