//! The steps of a guest's coming, over one connection.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::addr::{GfnRange, PageSize};
use crate::entry::Marker;
use crate::mark::MarkError;
use crate::postcopy::error::Trouble;
use crate::postcopy::machine::{Coming, Failure};
use crate::postcopy::plan::{Plan, outside};
use crate::postcopy::report::{Phase, Progress, SinkReport, Watch};
use crate::postcopy::transport::Connection;
use crate::postcopy::wire::{Control, Digest, Offer, Part, Reason, Role, Session, runs_in_parts};
use crate::protocol::Protocol;

use super::Shared;
use super::leg::{Event, Leg, MayEnd, Next};

/// How long nothing comes over a connection that is lost before what may be left in it is given up: longer than a thread of a busy
/// host waits for a processor.
const QUIET: Duration = Duration::from_secs(1);

/// A guest that comes, while it has a connection.
pub(super) struct Steps<'s, 'g, P: Protocol> {
    pub(super) shared: &'s Shared<'g, P>,
    /// The connection's.
    pub(super) session: Session,
    /// The guest's, once its machine was accepted.
    pub(super) known: &'s mut Option<Session>,
    pub(super) report: &'s mut SinkReport,
    pub(super) started: &'s mut Option<Instant>,
    pub(super) began: Instant,
    pub(super) watch: &'s mut dyn FnMut(&Progress) -> Watch,
}

impl<P: Protocol> Steps<'_, '_, P> {
    /// Takes the guest, or what is missing of it; `serve` starts a stream's thread.
    pub(super) async fn take(
        &mut self,
        leg: &mut Leg<'_>,
        machine: &mut dyn Coming,
        serve: impl Fn(Role, Connection),
    ) -> Result<(), Trouble> {
        let offer = self.offer(leg).await?;
        if let Err(reason) = self.accept(&offer, machine) {
            leg.say(Control::Refuse(Reason::new(&reason))).await?;
            return Err(Trouble::Protocol(reason));
        }
        *self.known = Some(self.session);
        leg.say(Control::Accept).await?;
        if offer.resumes {
            self.say_what_is_here(leg).await?;
        }
        self.join(leg, offer.bulk_streams, serve).await?;
        if !offer.resumes {
            self.begin(leg, machine, offer.bulk_streams).await?;
        }
        self.complete(leg, offer.bulk_streams).await
    }

    async fn offer(&mut self, leg: &mut Leg<'_>) -> Result<Offer, Trouble> {
        match self.hear(leg, Phase::Connecting).await? {
            Control::Offer(offer) => Ok(offer),
            other => Err(out_of_turn(&other)),
        }
    }

    /// Whether this machine, as far as it is here, can be the one that is offered.
    fn accept(&self, offer: &Offer, machine: &mut dyn Coming) -> Result<(), String> {
        let runs = self.started.is_some();
        match (offer.resumes, runs) {
            (true, false) => return Err("no guest of that source runs here".to_owned()),
            (false, true) => return Err("a guest runs here already".to_owned()),
            _ => {}
        }
        require_small(self.shared.guest.reclaimer().granule())?;
        let ram = self.shared.guest.ram();
        if offer.ranges != ram {
            let told = |ranges: &[GfnRange]| {
                let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                ranges.join(", ")
            };
            return Err(format!(
                "the guest's RAM is {}, and this machine's {}: give both the same memory.size",
                told(&offer.ranges),
                told(&ram)
            ));
        }
        if runs { Ok(()) } else { machine.accept(&offer.description).map_err(|e| e.to_string()) }
    }

    /// What a source that comes again need not send.
    async fn say_what_is_here(&mut self, leg: &mut Leg<'_>) -> Result<(), Trouble> {
        let mut here = Plan::of(self.shared.guest.ram());
        self.shared.guest.missing().into_iter().for_each(|run| here.remove(run));
        for message in runs_in_parts(&here.runs(), |runs, part| Control::Received { runs, part }) {
            leg.say(message).await?;
        }
        Ok(())
    }

    /// Waits for the other streams.
    async fn join(
        &mut self,
        leg: &mut Leg<'_>,
        bulk_streams: u8,
        serve: impl Fn(Role, Connection),
    ) -> Result<(), Trouble> {
        let mut awaited: Vec<Role> = (0..bulk_streams).map(Role::Bulk).collect();
        awaited.push(Role::Urgent);
        while !awaited.is_empty() {
            match leg.next(self.session, |role| awaited.contains(&role)).await? {
                Next::Joined(role, connection) => {
                    awaited.retain(|&other| other != role);
                    serve(role, connection);
                }
                Next::Said(other) => return Err(out_of_turn(&other)),
                Next::Told(_) => {}
                Next::Tick => self.tick(Phase::Connecting)?,
            }
        }
        Ok(())
    }

    /// Takes what comes before the guest runs, to the moment from which it does.
    async fn begin(
        &mut self,
        leg: &mut Leg<'_>,
        machine: &mut dyn Coming,
        bulk_streams: u8,
    ) -> Result<(), Trouble> {
        let (mut state, mut missing, mut fences) = (Vec::new(), Vec::new(), BTreeMap::new());
        let (mut state_part, mut awaited) = (Part::More, None);
        let at_fence = |fences: &BTreeMap<u8, u64>, awaited: Option<u64>| {
            awaited.is_some_and(|number| {
                (0..bulk_streams).all(|index| fences.get(&index).is_some_and(|&at| at >= number))
            })
        };
        while !at_fence(&fences, awaited) {
            match leg.next(self.session, |_| false).await? {
                Next::Said(Control::State { bytes, part }) if state_part == Part::More => {
                    state.extend(bytes);
                    state_part = part;
                }
                Next::Said(Control::SwitchOver { fence, missing: runs, part })
                    if state_part == Part::Last && awaited.is_none() =>
                {
                    self.require_ram(&runs)?;
                    missing.extend(runs);
                    awaited = (part == Part::Last).then_some(fence);
                }
                Next::Said(other) => return Err(out_of_turn(&other)),
                // Fences of a stream count up.
                Next::Told(Event::Fence(index, number)) => drop(fences.insert(index, number)),
                Next::Told(_) | Next::Joined(..) => {}
                Next::Tick => self.tick(Phase::PreCopy)?,
            }
        }
        if let Some(other) = fences.into_values().find(|&number| Some(number) != awaited) {
            return Err(Trouble::Protocol(format!("fence {other} is not the one that was said")));
        }
        self.mark(&missing)?;
        let left = missing.iter().map(|run| run.frames()).sum();
        self.shared.tally.left.store(left, Relaxed);
        self.shared.runs.store(true, Relaxed);
        let prepared = machine.prepare(state).map_err(asked("taking the machine's state"));
        prepared?;
        leg.say(Control::Ready).await?;
        match self.hear(leg, Phase::SwitchOver).await? {
            Control::Go => {}
            other => return Err(out_of_turn(&other)),
        }
        machine.start().map_err(asked("starting the guest"))?;
        *self.started = Some(Instant::now());
        leg.say(Control::Running).await
    }

    /// Fails unless all of `runs` is the guest's.
    fn require_ram(&self, runs: &[GfnRange]) -> Result<(), Trouble> {
        let outside = outside(&self.shared.guest.ram(), runs);
        let what = |run| format!("it names pages at {run}, which is not RAM");
        outside.map_or(Ok(()), |run| Err(Trouble::Protocol(what(run))))
    }

    /// Marks what the guest has to wait for.
    fn mark(&self, missing: &[GfnRange]) -> Result<(), Trouble> {
        let guest = self.shared.guest;
        let memory = |error: &dyn std::fmt::Display| Trouble::Memory(error.to_string());
        for &run in missing {
            match guest.mark(run, Marker::Missing) {
                Ok(()) => {}
                // It came, and was written again at the source.
                Err(MarkError::InUse { .. }) => {
                    guest.unmap(run).map_err(|error| memory(&error))?;
                    guest.mark(run, Marker::Missing).map_err(|error| memory(&error))?;
                }
                Err(error) => return Err(memory(&error)),
            }
        }
        Ok(())
    }

    /// Waits until all is there.
    async fn complete(&mut self, leg: &mut Leg<'_>, bulk_streams: u8) -> Result<(), Trouble> {
        let (mut all, mut ended, mut digest) = (None, 0, Digest::new());
        leg.let_end(MayEnd::Bulk);
        while all.is_none() || ended < bulk_streams {
            match leg.next(self.session, |_| false).await? {
                Next::Said(Control::AllSent(theirs)) => all = Some(theirs),
                Next::Said(other) => return Err(out_of_turn(&other)),
                Next::Told(Event::Ended(_, one)) => {
                    ended += 1;
                    digest.merge(one);
                }
                Next::Told(_) | Next::Joined(..) => {}
                Next::Tick => self.tick(Phase::PostCopy)?,
            }
        }
        match all {
            Some(theirs) if theirs == digest => {}
            // A stream that breaks between two frames ends as one that has sent all.
            Some(theirs) if theirs.pages() > digest.pages() => {
                return Err(Trouble::EndedEarly { came: digest.pages(), sent: theirs.pages() });
            }
            _ => {
                let what = "what came in bulk is not what was sent".to_owned();
                return Err(Trouble::Protocol(what));
            }
        }
        // Answers may still be under way. What nobody sends any more has to be asked of a source that comes again.
        let left = || self.shared.tally.left.load(Relaxed);
        let mut last = (left(), Instant::now());
        while !self.shared.guest.missing().is_empty() {
            if left() != last.0 {
                last = (left(), Instant::now());
            }
            if last.1.elapsed() > leg.patience() {
                let what =
                    format!("{} pages have not come of those that it says it has sent", left());
                return Err(Trouble::Protocol(what));
            }
            match leg.next(self.session, |_| false).await? {
                Next::Said(other) => return Err(out_of_turn(&other)),
                Next::Tick => self.tick(Phase::PostCopy)?,
                Next::Told(_) | Next::Joined(..) => {}
            }
        }
        let started = self.started.unwrap_or(self.began);
        if self.report.postcopy_ms == 0.0 {
            self.report.postcopy_ms = started.elapsed().as_secs_f64() * 1e3;
        }
        leg.let_end(MayEnd::All);
        leg.say(Control::Complete(digest)).await?;
        match self.hear(leg, Phase::PostCopy).await? {
            Control::Freed => Ok(()),
            other => Err(out_of_turn(&other)),
        }
    }

    /// Lets the streams' threads take what still comes of a connection that is lost: of a source that has died, that may be the only
    /// copy.
    pub(super) async fn hear_out(&mut self, leg: &mut Leg<'_>) -> Result<(), Trouble> {
        let come = || self.shared.tally.come.load(Relaxed);
        let since = Instant::now();
        let mut last = (come(), since);
        while leg.outlasts(self.session, since).await? {
            if come() != last.0 {
                last = (come(), Instant::now());
            }
            if since.elapsed() > leg.patience() || last.1.elapsed() > QUIET {
                break;
            }
            self.tick(Phase::PostCopy)?;
        }
        Ok(())
    }

    /// Waits for what the source is to say next.
    async fn hear(&mut self, leg: &mut Leg<'_>, phase: Phase) -> Result<Control, Trouble> {
        loop {
            match leg.next(self.session, |_| false).await? {
                Next::Said(said) => return Ok(said),
                Next::Told(_) | Next::Joined(..) => {}
                Next::Tick => self.tick(phase)?,
            }
        }
    }

    /// Tells how far it is, and hears whether it is to go on.
    fn tick(&mut self, phase: Phase) -> Result<(), Trouble> {
        let tally = &self.shared.tally;
        self.report.arrival.note(self.began, tally.bulk.load(Relaxed), tally.urgent.load(Relaxed));
        self.report.progress = self.shared.progress(phase, self.began);
        match (self.watch)(&self.report.progress) {
            Watch::GoOn => Ok(()),
            Watch::Cancel => Err(Trouble::Cancelled),
            Watch::Ended => Err(Trouble::Ended),
        }
    }
}

/// Fails where memory is mapped in pages of `granule` only: what is asked for comes page by page.
fn require_small(granule: PageSize) -> Result<(), String> {
    match granule {
        PageSize::Size4K => Ok(()),
        _ => Err(format!(
            "this machine's memory is mapped in pages of {granule} alone, and pages come one by one: give it another \
             memory.backing than \"hugetlb\""
        )),
    }
}

fn asked(what: &'static str) -> impl Fn(Failure) -> Trouble {
    move |source| Trouble::Machine { what, source }
}

fn out_of_turn(said: &Control) -> Trouble {
    Trouble::Protocol(format!("it says {} out of its turn", said.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guest ran at the sink, and its first request was answered by a page that nothing could map: it was given up.
    #[test]
    fn a_machine_of_huge_pages_alone_is_no_sink() {
        assert_eq!(require_small(PageSize::Size4K), Ok(()));
        let refused = require_small(PageSize::Size2M).unwrap_err();
        assert!(refused.contains("hugetlb"), "{refused}");
    }
}
