//! A guest that comes.
//!
//! The steps are those of [`source`](super::source). What is special here:
//!
//! * Before the guest runs, what comes takes the place of what was there; once it runs, only what is missing is filled
//!   ([`Onto`]).
//! * A fault thread sends its request itself, and the urgent stream's thread places the answer: no third thread is waked for a page.
//! * When the connection breaks, the guest goes on with what it has. Who waits for a page goes on waiting; the source comes
//!   again, in the same session, and hears what is there.

mod arrivals;
mod config;
mod door;
mod leg;
mod pager;
mod polite;
mod steps;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, ScopedJoinHandle};
use std::time::Instant;

use crate::addr::GfnRange;
use crate::place::{Arrived, Onto};
use crate::protocol::Protocol;
use crate::service::Guest;

use super::error::Trouble;
use super::landing::Berths;
use super::machine::Coming;
use super::report::{Histogram, Phase, Progress, SinkReport, Watch};
use super::wire::{PagesHeader, Purpose, Session};

pub use config::SinkConfig;
pub use door::Door;
pub use pager::Pager;

/// Why a guest has not come, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Comes {
    /// It runs at the source, as before. What came of it is of no use.
    #[error("{0}; the guest has not come")]
    Not(Trouble),
    /// It runs here, and part of its memory will never come.
    #[error("{0}; part of the guest's memory will never come")]
    InPart(Trouble),
}

/// A guest that comes, over as many connections as it takes.
#[derive(Debug)]
pub struct Sink<'g, P: Protocol> {
    shared: Shared<'g, P>,
    door: Arc<Door>,
    session: Option<Session>,
    report: SinkReport,
    began: Instant,
    /// When the guest began to run here.
    started: Option<Instant>,
}

/// What the streams' threads use.
#[derive(Debug)]
struct Shared<'g, P: Protocol> {
    guest: &'g Guest<P>,
    pager: Arc<Pager>,
    /// The guest runs here, or is about to.
    runs: Arc<AtomicBool>,
    tally: Tally,
    waits: Mutex<Histogram>,
    berths: Berths,
}

/// What came. Statistics.
#[derive(Debug, Default)]
struct Tally {
    pages: AtomicU64,
    bytes: AtomicU64,
    /// Bytes that were read, whatever becomes of them.
    come: AtomicU64,
    bulk: AtomicU64,
    urgent: AtomicU64,
    duplicates: AtomicU64,
    huge: AtomicU64,
    /// Pages that were missing when the guest began to run, less those that came since.
    left: AtomicU64,
}

impl<'g, P: Protocol> Sink<'g, P> {
    /// A guest that is about to come into `guest`, which nobody has used yet, and whose missing pages `pager` asks for.
    pub fn new(guest: &'g Guest<P>, pager: Arc<Pager>) -> Sink<'g, P> {
        let shared = Shared {
            guest,
            pager,
            runs: Arc::default(),
            tally: Tally::default(),
            waits: Mutex::default(),
            berths: Berths::of(guest),
        };
        let report = SinkReport::default();
        let (door, began) = (Door::new(), Instant::now());
        Sink { shared, door, session: None, report, began, started: None }
    }

    /// The same, told at `door` where to listen while it runs.
    #[must_use]
    pub fn with_door(self, door: Arc<Door>) -> Sink<'g, P> {
        Sink { door, ..self }
    }

    /// Takes the guest from whoever comes to `config`'s address first, and all of its memory. `watch` hears of the progress some
    /// times a second; once it calls it off, what is missing will never come. The host backs the guest's memory while nobody has come: what
    /// the pages did not need goes back to it when the last one is there.
    ///
    /// # Errors
    /// [`Comes`].
    pub fn run(
        &mut self,
        config: &SinkConfig,
        machine: &mut dyn Coming,
        watch: &mut dyn FnMut(&Progress) -> Watch,
    ) -> Result<SinkReport, Comes> {
        let (guest, over) = (self.shared.guest, AtomicBool::new(false));
        let began = Arc::clone(&self.shared.runs);
        let wanted = || !over.load(Relaxed) && !began.load(Relaxed);
        let came = std::thread::scope(|scope| {
            // Failing, the host backs each block when a page of it comes. What it has backed is held until the guest is there.
            let backs = Builder::new().name("backs".into());
            let backing = backs.spawn_scoped(scope, move || guest.back(wanted));
            let came = leg::run(self, config, machine, watch);
            over.store(true, Relaxed);
            drop(backing.map(ScopedJoinHandle::join));
            came
        });
        self.note(if came.is_ok() { Phase::Done } else { Phase::Broken }, watch);
        match came {
            Ok(()) => Ok(self.report.clone()),
            // All is here, and nobody waited for the source to hear it.
            Err(_) if self.started.is_some() && self.shared.guest.missing().is_empty() => {
                Ok(self.report.clone())
            }
            Err(trouble) if self.started.is_some() => {
                self.shared.give_up();
                Err(Comes::InPart(trouble))
            }
            Err(trouble) => Err(Comes::Not(trouble)),
        }
    }

    /// What it did so far.
    pub fn report(&self) -> &SinkReport {
        &self.report
    }

    fn note(&mut self, phase: Phase, watch: &mut dyn FnMut(&Progress) -> Watch) -> Watch {
        self.report.progress = self.shared.progress(phase, self.began);
        let (asked, tally) = (self.shared.pager.asked(), &self.shared.tally);
        self.report.joined = asked.joined;
        self.report.duplicates = tally.duplicates.load(Relaxed);
        self.report.huge_blocks = tally.huge.load(Relaxed);
        self.report.waits.clone_from(&*self.shared.waits());
        watch(&self.report.progress)
    }
}

impl<P: Protocol> Shared<'_, P> {
    fn progress(&self, phase: Phase, began: Instant) -> Progress {
        let Tally { pages, bytes, left, .. } = &self.tally;
        Progress {
            phase,
            rounds: 0,
            pages: pages.load(Relaxed),
            bytes: bytes.load(Relaxed),
            left: left.load(Relaxed),
            requests: self.pager.asked().requests,
            seconds: began.elapsed().as_secs_f64(),
        }
    }

    /// What pages arrive at.
    fn onto(&self) -> Onto {
        if self.runs.load(Relaxed) { Onto::Missing } else { Onto::Resting }
    }

    /// The pages of `header` are there.
    fn landed(&self, header: &PagesHeader, arrived: Arrived) {
        let pages = header.pages();
        // B2 of `one-request-per-page`
        let mut zeroes = Vec::new();
        self.pager.arrived(pages, |gfn, wait| {
            self.waits().add(wait);
            let at = (gfn.as_u64() - pages.start().as_u64()) as usize;
            zeroes.extend(header.is_zero(at).then_some(gfn));
        });
        // Such a page may have been left to its first touch before somebody asked for it: he is let go by the answer, which a
        // line that breaks now loses.
        for gfn in zeroes {
            let page = GfnRange::new(gfn, 1).expect("it has come");
            // Failing, he waits for the answer.
            let _ = self.guest.wake(page);
        }
        let Tally { bytes, bulk, urgent, duplicates, huge, left, .. } = &self.tally;
        let by = if header.purpose() == Purpose::Bulk { bulk } else { urgent };
        by.fetch_add(arrived.pages, Relaxed);
        self.tally.pages.fetch_add(pages.frames(), Relaxed);
        bytes.fetch_add(header.payload_bytes() as u64, Relaxed);
        duplicates.fetch_add(arrived.duplicates, Relaxed);
        huge.fetch_add(arrived.huge.into(), Relaxed);
        if self.runs.load(Relaxed) {
            left.fetch_sub(arrived.pages, Relaxed);
        }
    }

    /// What is missing will never come: who waits for it finds that out.
    fn give_up(&self) {
        for gfn in self.pager.give_up() {
            let page = GfnRange::new(gfn, 1).expect("somebody waits for it");
            // Failing, who waits is let go with the guest.
            let _ = self.guest.wake(page);
        }
    }

    fn waits(&self) -> std::sync::MutexGuard<'_, Histogram> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
