//! A guest part of whose memory is elsewhere, for tests: they are asked for it, and bring it when it suits them.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guest_mm::addr::{GfnRange, Gpa, PageSize};
use guest_mm::entry::Marker;
use guest_mm::place::{Content, Placed};
use guest_mm::pool::BackingChoice;
use guest_mm::{Answer, FaultPolicy, Guest, GuestConfig, GuestMm};

use super::Pinning;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Bytes of the guest.
pub(crate) const RAM: u64 = 4 << 20;

/// No test waits longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The guest, and what is asked for.
pub(crate) struct Elsewhere {
    pub(crate) guest: Guest,
    asked: Receiver<u64>,
    lost: Arc<AtomicBool>,
    service: GuestMm,
}

impl Elsewhere {
    /// A guest that is all here yet.
    pub(crate) fn new() -> Elsewhere {
        let service = GuestMm::new(BackingChoice::Auto, RAM, PageSize::Size4K).unwrap();
        let (ask, asked) = channel();
        let ask = Mutex::new(ask);
        let lost = Arc::new(AtomicBool::new(false));
        let gone = Arc::clone(&lost);
        let on_missing = move |gpa: Gpa| {
            if gone.load(Relaxed) {
                return Answer::Lost;
            }
            // Nobody listens at the end.
            let _ = ask.lock().unwrap().send(gpa.as_u64());
            Answer::Asked
        };
        let config = GuestConfig {
            ram: vec![frames(0, RAM)],
            over: Vec::new(),
            on_missing: Some(Box::new(on_missing)),
            policy: FaultPolicy { pages: PageSize::Size4K },
            fault_threads: 1,
            on_stop: Box::new(|_| {}),
        };
        let guest = service.add_guest(config).unwrap();
        Elsewhere { guest, asked, lost, service }
    }

    /// The right to its memory.
    pub(crate) fn dma(&self) -> Pinning {
        Pinning::new(self.guest.pinner())
    }

    /// What is untouched of `bytes` from `at` on is elsewhere.
    pub(crate) fn leave(&self, at: u64, bytes: u64) {
        self.guest.mark(frames(at, bytes), Marker::Missing).unwrap();
    }

    /// The next page that is asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.recv_timeout(PATIENCE).expect("a page is asked for")
    }

    /// Whether no more was asked for.
    pub(crate) fn is_quiet(&self) -> bool {
        self.asked.try_recv().is_err()
    }

    /// The page at `at` comes, full of `byte`.
    pub(crate) fn come(&self, at: u64, byte: u8) {
        let page = [byte; PAGE as usize];
        let placed = self.guest.place(Gpa::new(at), Content::Bytes(&page)).unwrap();
        assert_ne!(placed, Placed::AlreadyThere);
    }

    /// What is elsewhere never comes, and who waits for a page of `bytes` from `at` on is told.
    pub(crate) fn lose(&self, at: u64, bytes: u64) {
        self.lost.store(true, Relaxed);
        self.guest.wake(frames(at, bytes)).unwrap();
    }

    /// Brings what is asked for out of `from`, until it was quiet for `time`; the pages.
    pub(crate) fn serve(&self, from: &Elsewhere, time: Duration) -> Vec<u64> {
        let mut came = Vec::new();
        while let Ok(at) = self.asked.recv_timeout(time) {
            let mut page = [0; PAGE as usize];
            from.guest.read(Gpa::new(at), &mut page).unwrap();
            self.guest.place(Gpa::new(at), Content::Bytes(&page)).unwrap();
            came.push(at);
        }
        came
    }

    /// Nobody uses it any more.
    pub(crate) fn close(self) {
        self.guest.close().unwrap();
        self.service.audit().unwrap();
    }
}

fn frames(at: u64, bytes: u64) -> GfnRange {
    GfnRange::from_bytes(Gpa::new(at), bytes).unwrap()
}
