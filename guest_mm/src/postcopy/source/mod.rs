//! A guest that goes.
//!
//! ```text
//!        source                                   sink
//!   1    Offer  ------------------------------>   takes this machine?
//!        <------------------------- Accept, or Refuse
//!   2    pages, round after round; the guest runs here                       (not in pure post-copy)
//!   3    stops the guest; a fence on each bulk stream; State, SwitchOver -->  missing pages marked
//!        <---------------------------------- Ready, or Failed
//!   4    Go  ---------------------------------->  the guest runs there
//!        <---------------------------------- Running
//!   5    the pages that are missing; before them those that are asked for
//!        AllSent ------------------------------>  all there, and as it was sent?
//!        <---------------------------------- Complete
//!   6    Freed ------------------------------->
//!
//! Invariant   the guest runs on one side at most. Before Go the source may run it, after Go the sink alone; whatever breaks
//!             between Go and Running, the source does not run it: only the sink knows.
//!             The source keeps every page until Complete.
//! Tolerated   a sink that is gone for good after Go: then the guest stands still at the source, as it was in 3, until an
//!             operator takes it back.
//! ```
//!
//! Each stream has a thread, and each thread a runtime of its own: a request that comes while bulk pages are packed waits for the
//! system's scheduler, and for nobody's queue.
#![allow(unsafe_code, reason = "says of the guest that it rests")]

mod bulk;
mod config;
mod journey;
mod leg;
mod urgent;

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::addr::GfnRange;
use crate::protocol::Protocol;
use crate::service::Guest;

use super::error::Trouble;
use super::freight::{Freight, FreightError, Guests, Kept, Shipped};
use super::machine::Departing;
use super::plan::Plan;
use super::report::{Phase, Progress, SourceReport, Watch};
use super::stream::{FrameWriter, SendFile};
use super::transport::{Address, Limits, Security};
use super::wire::{Purpose, Session};

pub use config::{PRE_COPY_ROUNDS, SourceConfig};

/// Where a sink is, and how to talk to it.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// Where it listens.
    pub address: Address,
    /// Whether it is to prove who it is.
    pub security: Security,
    /// How long a stream may take to begin.
    pub limits: Limits,
}

/// Why a guest is not at the sink, and where it is.
#[derive(Debug, thiserror::Error)]
pub enum Stays {
    /// Here, and it goes on as if nothing had been tried.
    #[error("{0}; the guest goes on here")]
    Here(Trouble),
    /// At the sink, or about to run there: here it stands still, with every page that the sink may still need.
    #[error(
        "{0}; the guest is the sink's now, and the memory that it may need is kept: connect again to go on"
    )]
    HandedOver(Trouble),
}

/// A guest that goes, over as many connections as it takes.
#[derive(Debug)]
pub struct Source<'g, P: Protocol> {
    shared: Shared<'g, P>,
    /// What was not zeroes when the guest stopped; none before it was handed over.
    moved: Option<Vec<GfnRange>>,
    cancelled: bool,
    report: SourceReport,
    began: Instant,
}

/// What the streams' threads use.
#[derive(Debug)]
struct Shared<'g, P: Protocol> {
    guest: &'g Guest<P>,
    config: SourceConfig,
    session: Session,
    /// What is still to be sent.
    plan: Mutex<Plan>,
    /// The guest was handed over: here it rests for good.
    handed: AtomicBool,
    kept: Kept<'g>,
    tally: Tally,
}

/// What was sent. Statistics.
#[derive(Debug, Default)]
struct Tally {
    pages: AtomicU64,
    zeroes: AtomicU64,
    bytes: AtomicU64,
    requests: AtomicU64,
}

impl<'g, P: Protocol> Source<'g, P> {
    /// A guest that is about to go.
    ///
    /// # Errors
    /// The system has no random bytes for the session's name.
    pub fn new(guest: &'g Guest<P>, config: SourceConfig) -> Result<Source<'g, P>, Trouble> {
        let named = |source| Trouble::System { what: "naming the session", source };
        let session = Session::random().map_err(named)?;
        let (plan, handed, kept, tally) = Default::default();
        Ok(Source {
            shared: Shared { guest, config, session, plan, handed, kept, tally },
            moved: None,
            cancelled: false,
            report: SourceReport::default(),
            began: Instant::now(),
        })
    }

    /// Sends the guest to the sink that `dialer` names. `watch` hears of the progress some times a second, and says whether to go
    /// on: until it is handed over, the guest can be called back.
    ///
    /// Whoever calls again after [`Stays::HandedOver`] goes on from what is missing.
    ///
    /// # Errors
    /// [`Stays`] says where the guest is.
    pub fn run(
        &mut self,
        dialer: &Dialer,
        machine: &mut dyn Departing,
        watch: &mut dyn FnMut(&Progress) -> Watch,
    ) -> Result<SourceReport, Stays> {
        self.cancelled = false;
        if self.moved.is_some() {
            self.report.reconnects += 1;
        }
        let went = leg::run(self, dialer, machine, watch);
        self.shared.kept.let_go();
        match went {
            Ok(()) => {
                self.note(Phase::Done, watch);
                Ok(self.report.clone())
            }
            // It ran there to its end, and left nothing to send.
            Err(Trouble::Ended) if self.moved.is_some() => {
                self.report.guest_ended = true;
                self.note(Phase::Done, watch);
                Ok(self.report.clone())
            }
            Err(trouble) if self.moved.is_some() => {
                self.note(Phase::Broken, watch);
                Err(Stays::HandedOver(trouble))
            }
            Err(trouble) => Err(Stays::Here(trouble)),
        }
    }

    /// What it did so far.
    pub fn report(&self) -> &SourceReport {
        &self.report
    }

    /// Tells `watch` how far it is.
    fn note(&mut self, phase: Phase, watch: &mut dyn FnMut(&Progress) -> Watch) {
        let rounds = self.report.progress.rounds;
        let progress = self.shared.progress(phase, rounds, self.began);
        self.report.progress = progress;
        self.report.zero_pages = self.shared.tally.zeroes.load(Relaxed);
        self.cancelled |= watch(&progress) != Watch::GoOn;
    }
}

impl<'g, P: Protocol> Shared<'g, P> {
    /// Held for a moment at a time; who panics under it has said so.
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self, phase: Phase, rounds: u32, began: Instant) -> Progress {
        Progress {
            phase,
            rounds,
            pages: self.tally.pages.load(Relaxed),
            bytes: self.tally.bytes.load(Relaxed),
            left: self.plan().left(),
            requests: self.tally.requests.load(Relaxed),
            seconds: began.elapsed().as_secs_f64(),
        }
    }

    /// The guest is not called back any more.
    fn hand_over(&self) {
        self.handed.store(true, Release);
    }

    fn is_handed_over(&self) -> bool {
        self.handed.load(Acquire)
    }

    /// Sends the pages of `range`, all in one block, and counts them.
    async fn ship<W: SendFile + Unpin>(
        &self,
        freight: &mut Freight,
        range: GfnRange,
        purpose: Purpose,
        writer: &mut FrameWriter<W>,
    ) -> Result<Shipped, FreightError> {
        let guests = if self.is_handed_over() { Guests::Rest(&self.kept) } else { Guests::Run };
        // SAFETY: a guest is handed over when its machine was stopped, and is then not let go on before this connection is over and
        // what is kept for it let go: what that means is in the contract of `Departing`.
        let sent = unsafe { freight.send(self.guest, guests, range, purpose, writer) };
        let shipped = sent.await?;
        self.tally.pages.fetch_add(shipped.pages, Relaxed);
        self.tally.zeroes.fetch_add(shipped.zeroes, Relaxed);
        self.tally.bytes.fetch_add(shipped.bytes, Relaxed);
        Ok(shipped)
    }
}
