//! The steps of a migration, over one connection.

use std::time::{Duration, Instant};

use crate::addr::GfnRange;
use crate::postcopy::error::Trouble;
use crate::postcopy::machine::{Departing, Failure};
use crate::postcopy::plan::{Plan, outside};
use crate::postcopy::report::{Phase, Progress, SourceReport, Watch};
use crate::postcopy::wire::{
    Control, Digest, Mode, Offer, PAGE_BYTES, Part, runs_in_parts, state_parts,
};
use crate::protocol::Protocol;

use super::Shared;
use super::bulk::Order;
use super::leg::{Event, Leg, Next};

/// A guest that goes, while it has a connection.
pub(super) struct Journey<'j, 'g, P: Protocol> {
    pub(super) shared: &'j Shared<'g, P>,
    pub(super) moved: &'j mut Option<Vec<GfnRange>>,
    pub(super) cancelled: &'j mut bool,
    pub(super) report: &'j mut SourceReport,
    pub(super) began: Instant,
    pub(super) watch: &'j mut dyn FnMut(&Progress) -> Watch,
}

/// The pages that held something before the guest was stopped.
struct Held {
    runs: Vec<GfnRange>,
    /// The same, without a run that begins where another ends: what the sink is told.
    joined: Vec<GfnRange>,
}

impl Held {
    fn of(runs: Vec<GfnRange>) -> Held {
        let joined = Plan::of(runs.iter().copied()).runs();
        Held { runs, joined }
    }
}

/// The fence behind which no page of the pre-copy is.
const FENCE: u64 = 1;

impl<P: Protocol> Journey<'_, '_, P> {
    /// Goes, or goes on.
    pub(super) async fn go(
        &mut self,
        leg: &mut Leg,
        machine: &mut dyn Departing,
        start_streams: impl FnOnce(&mut Leg),
    ) -> Result<(), Trouble> {
        let missing: u64 = self.shared.guest.missing().iter().map(|run| run.frames()).sum();
        if missing > 0 {
            return Err(Trouble::Incomplete(missing));
        }
        self.offer(leg, machine).await?;
        if let Some(moved) = self.moved.clone() {
            let received = self.received(leg).await?;
            let mut plan = Plan::of(moved);
            received.into_iter().for_each(|run| plan.remove(run));
            *self.shared.plan() = plan;
        }
        start_streams(leg);
        self.join(leg).await?;
        if self.moved.is_none() {
            self.leave(leg, machine).await?;
        }
        self.follow(leg).await
    }

    /// Step 1.
    async fn offer(&mut self, leg: &mut Leg, machine: &dyn Departing) -> Result<(), Trouble> {
        let config = &self.shared.config;
        let offer = Offer {
            description: machine.description(),
            ranges: self.shared.guest.ram(),
            mode: config.mode,
            encoding: config.encoding,
            bulk_streams: config.bulk_streams,
            resumes: self.moved.is_some(),
        };
        leg.say(Control::Offer(offer)).await?;
        self.hear(leg, Phase::Connecting, |said| matches!(said, Control::Accept)).await.map(|_| ())
    }

    /// What a sink that goes on has already.
    async fn received(&mut self, leg: &mut Leg) -> Result<Vec<GfnRange>, Trouble> {
        let mut all = Vec::new();
        loop {
            let is_it = |said: &Control| matches!(said, Control::Received { .. });
            if let Control::Received { runs, part } = self.hear(leg, Phase::Broken, is_it).await? {
                if let Some(run) = outside(&self.shared.guest.ram(), &runs) {
                    let what = format!("it has pages at {run}, which is not RAM");
                    return Err(Trouble::Protocol(what));
                }
                all.extend(runs);
                if part == Part::Last {
                    return Ok(all);
                }
            }
        }
    }

    /// Waits until every stream is there.
    async fn join(&mut self, leg: &mut Leg) -> Result<(), Trouble> {
        for _ in 0..=self.shared.config.bulk_streams {
            self.told(leg, Phase::Connecting, |event| matches!(event, Event::Joined)).await?;
        }
        Ok(())
    }

    /// Steps 2 to 4. If they fail before the guest was handed over, it goes on here.
    async fn leave(&mut self, leg: &mut Leg, machine: &mut dyn Departing) -> Result<(), Trouble> {
        let tracks = self.shared.config.mode != Mode::PostCopy;
        if tracks {
            machine.start_tracking().map_err(asked("tracking what the guest writes"))?;
        }
        let held = Held::of(self.shared.guest.holding());
        *self.shared.plan() = Plan::of(held.runs.iter().copied());
        let left = match self.rounds(leg, machine).await {
            Ok(()) => self.switch_over(leg, machine, &held).await,
            Err(trouble) => Err(trouble),
        };
        if tracks {
            machine.stop_tracking();
        }
        left
    }

    /// Step 2: round after round, until little enough is left.
    async fn rounds(&mut self, leg: &mut Leg, machine: &mut dyn Departing) -> Result<(), Trouble> {
        let config = self.shared.config.clone();
        if config.mode == Mode::PostCopy {
            return Ok(());
        }
        loop {
            self.report.progress.rounds += 1;
            let (since, bytes) = (Instant::now(), self.sent());
            self.drain(leg, Phase::PreCopy).await?;
            self.dirty(machine)?;
            let rate = (self.sent() - bytes) as f64 / since.elapsed().as_secs_f64().max(1e-6);
            let left = self.shared.plan().left() * PAGE_BYTES as u64;
            let rounds = self.report.progress.rounds;
            if Duration::from_secs_f64(left as f64 / rate.max(1.0)) <= config.downtime {
                return Ok(());
            }
            if rounds >= config.rounds {
                let (left, rate) = (left >> 20, rate as u64 >> 20);
                return match config.mode {
                    Mode::PreCopy => Err(Trouble::NoConvergence { rounds, left, rate }),
                    Mode::Hybrid | Mode::PostCopy => Ok(()),
                };
            }
        }
    }

    /// Steps 3 and 4. `held` is what the plan was made of.
    async fn switch_over(
        &mut self,
        leg: &mut Leg,
        machine: &mut dyn Departing,
        held: &Held,
    ) -> Result<(), Trouble> {
        let stopped = Instant::now();
        let state = machine.stop().map_err(asked("stopping the guest"))?;
        self.report.stop_ms = millis(stopped);
        self.report.state_bytes = state.len() as u64;
        let handed = self.hand_over(leg, machine, &state, held).await;
        if self.moved.is_none() {
            machine.go_on();
        }
        handed?;
        self.hear(leg, Phase::SwitchOver, |said| matches!(said, Control::Running)).await?;
        self.report.downtime_ms = millis(stopped);
        Ok(())
    }

    async fn hand_over(
        &mut self,
        leg: &mut Leg,
        machine: &mut dyn Departing,
        state: &[u8],
        held: &Held,
    ) -> Result<(), Trouble> {
        let mut planned = None;
        match self.shared.config.mode {
            // The guest stands still: what was planned before need not be planned again.
            Mode::PostCopy => {
                let runs = self.shared.guest.holding();
                let pages: u64 = runs.iter().map(|run| run.frames()).sum();
                if runs == held.runs && pages == self.shared.plan().left() {
                    planned = Some(held.joined.clone());
                } else {
                    *self.shared.plan() = Plan::of(runs);
                }
            }
            Mode::Hybrid => self.dirty(machine)?,
            Mode::PreCopy => {
                self.dirty(machine)?;
                self.report.progress.rounds += 1;
                self.drain(leg, Phase::SwitchOver).await?;
            }
        }
        leg.order(Order::Fence(FENCE));
        for message in state_parts(state) {
            leg.say(message).await?;
        }
        let missing = planned.unwrap_or_else(|| self.shared.plan().runs());
        self.report.missing_at_start = self.shared.plan().left();
        let part = |missing, part| Control::SwitchOver { fence: FENCE, missing, part };
        for message in runs_in_parts(&missing, part) {
            leg.say(message).await?;
        }
        self.hear(leg, Phase::SwitchOver, |said| matches!(said, Control::Ready)).await?;
        if *self.cancelled {
            return Err(Trouble::Cancelled);
        }
        // From here on, whatever becomes of this message.
        *self.moved = Some(missing);
        self.shared.hand_over();
        leg.say(Control::Go).await
    }

    /// Steps 5 and 6.
    async fn follow(&mut self, leg: &mut Leg) -> Result<(), Trouble> {
        let digest = self.drain(leg, Phase::PostCopy).await?;
        leg.order(Order::Finish);
        leg.say(Control::AllSent(digest)).await?;
        let said = |said: &Control| matches!(said, Control::Complete(_));
        let Control::Complete(theirs) = self.hear(leg, Phase::PostCopy, said).await? else {
            return Ok(());
        };
        if theirs != digest {
            let what = format!("it has taken {} pages of {}", theirs.pages(), digest.pages());
            return Err(Trouble::Protocol(what));
        }
        // The pages are there, whether it hears this or not.
        if leg.say(Control::Freed).await.is_ok() {
            leg.part().await;
        }
        Ok(())
    }

    /// What was written goes into the plan.
    fn dirty(&mut self, machine: &mut dyn Departing) -> Result<(), Trouble> {
        let mut plan = self.shared.plan();
        machine
            .take_dirty(&mut |run| plan.add(run))
            .map_err(asked("asking what the guest has written"))
    }

    /// Sends all that is planned; what that was.
    async fn drain(&mut self, leg: &mut Leg, phase: Phase) -> Result<Digest, Trouble> {
        leg.order(Order::Drain);
        let mut digest = Digest::new();
        for _ in 0..self.shared.config.bulk_streams {
            let drained = self.told(leg, phase, |event| matches!(event, Event::Drained(_))).await?;
            if let Event::Drained(one) = drained {
                digest.merge(one);
            }
        }
        Ok(digest)
    }

    /// Waits for what the sink is to say next.
    async fn hear(
        &mut self,
        leg: &mut Leg,
        phase: Phase,
        wanted: impl Fn(&Control) -> bool,
    ) -> Result<Control, Trouble> {
        loop {
            match leg.next().await? {
                Next::Said(said) if wanted(&said) => return Ok(said),
                Next::Said(other) => return Err(out_of_turn(&other)),
                Next::Told(_) => {}
                Next::Tick => self.tick(phase)?,
            }
        }
    }

    /// Waits for what a thread is to tell next.
    async fn told(
        &mut self,
        leg: &mut Leg,
        phase: Phase,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event, Trouble> {
        loop {
            match leg.next().await? {
                Next::Told(event) if wanted(&event) => return Ok(event),
                Next::Told(_) => {}
                Next::Said(other) => return Err(out_of_turn(&other)),
                Next::Tick => self.tick(phase)?,
            }
        }
    }

    /// Tells how far it is, and hears whether it is to go on.
    fn tick(&mut self, phase: Phase) -> Result<(), Trouble> {
        let rounds = self.report.progress.rounds;
        self.report.progress = self.shared.progress(phase, rounds, self.began);
        *self.cancelled |= (self.watch)(&self.report.progress) != Watch::GoOn;
        // What was handed over stays so: then this is the end of the connection, and there may be another.
        if *self.cancelled { Err(Trouble::Cancelled) } else { Ok(()) }
    }

    fn sent(&self) -> u64 {
        let pages = self.shared.tally.pages.load(std::sync::atomic::Ordering::Relaxed);
        pages * PAGE_BYTES as u64
    }
}

fn asked(what: &'static str) -> impl Fn(Failure) -> Trouble {
    move |source| Trouble::Machine { what, source }
}

fn out_of_turn(said: &Control) -> Trouble {
    Trouble::Protocol(format!("it says {} out of its turn", said.kind()))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
