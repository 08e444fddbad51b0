//! Runs a race, and says what came of it.

mod outcome;

use std::time::{Duration, Instant};

use guest_mm::protocol::Steps;

use super::catalog::RACES;
use super::damage::Damage;
use super::engine::Engine;
use super::error::LabError;
use super::replay::columns;
use super::replay::replay;
use super::rounds::{Weather, rounds};
use super::stage::Line;
use super::variant::{Observation, Play, Race, Variant};
use super::{Drive, Options, Until, loom};

pub use outcome::Outcome;

/// How a race is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One interleaving, step by step.
    Replay,
    /// Real threads and chance, until the damage is done or the time is over.
    Storm,
    /// Every interleaving of a small geometry, by the model checker.
    Model,
}

/// Who looks at the memory in a storm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// The threads of the storm.
    Host,
    /// A KVM guest, too, with devices of this kind.
    Guest(Drive),
}

/// The engine that is run.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    /// The one that ships.
    Sound,
    /// One that leaves a step out.
    Variant(&'static Variant),
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The race.
    pub race: &'static Race,
    /// Which engine.
    pub subject: Subject,
    /// How.
    pub mode: Mode,
    /// Who looks on.
    pub witness: Witness,
    /// How long a storm may blow.
    pub limit: Duration,
    /// How often a replay is played; none is once, told as it happens.
    pub times: Option<u32>,
}

/// Who is told what happens.
pub struct Announce<'a> {
    /// Text, as it comes.
    pub text: &'a mut dyn FnMut(&str),
    /// How far it is.
    pub progress: &'a dyn Fn(&str),
}

/// Does what `order` says.
///
/// # Errors
/// [`LabError`]: it could not begin.
pub fn run(order: &Order, announce: &mut Announce<'_>) -> Result<Outcome, LabError> {
    if let Witness::Guest(drive) = order.witness {
        if order.mode != Mode::Storm {
            return Err(LabError::NotAStorm);
        }
        return watched(order, drive, announce);
    }
    match (order.mode, order.subject) {
        (Mode::Model, Subject::Sound) => {
            Err(LabError::NothingToModel { known: order.race.variant_names() })
        }
        (Mode::Model, Subject::Variant(variant)) => modelled(order, variant, None, announce),
        (_, Subject::Variant(variant)) if let Play::Modelled { why } = variant.play => {
            modelled(order, variant, Some(why), announce)
        }
        (Mode::Replay, _) => replayed(order, announce),
        (Mode::Storm, _) => stormed(order, announce),
    }
}

impl Order {
    /// The variants whose sides are played.
    fn variants(&self) -> Vec<&'static Variant> {
        match self.subject {
            Subject::Variant(variant) => vec![variant],
            Subject::Sound => self.race.variants.iter().filter(|v| v.shows_on_x86()).collect(),
        }
    }

    /// The engine, which is this order's alone for as long as it is there.
    fn engine(&self) -> Engine {
        Engine::of(match self.subject {
            Subject::Sound => Steps::ALL,
            Subject::Variant(variant) => variant.steps,
        })
    }

    /// The kind of damage that is expected.
    fn expected(&self) -> Option<&'static str> {
        match self.subject {
            Subject::Sound => None,
            Subject::Variant(variant) => Some(variant.damage),
        }
    }

    /// Of `found`, what there is to tell first: the damage that is expected, or else any.
    fn telling<'d>(&self, found: &'d [Damage]) -> Option<&'d Damage> {
        let expected = found.iter().find(|damage| Some(damage.kind) == self.expected());
        expected.or(found.first())
    }

    /// Whether `found` is what is expected.
    fn holds(&self, found: &[Damage]) -> bool {
        self.telling(found).map(|damage| damage.kind) == self.expected()
    }

    /// Whether `found` is what is looked for: of a variant the damage that is expected, else any.
    fn is_shown(&self, found: &[Damage]) -> bool {
        match self.subject {
            Subject::Sound => !found.is_empty(),
            Subject::Variant(_) => self.holds(found),
        }
    }

    fn outcome(&self, effort: &Effort) -> Outcome {
        let found = &effort.found;
        let damage = self.telling(found);
        let others = found.iter().filter(|&other| Some(other) != damage);
        Outcome {
            race: self.race.name,
            variant: match self.subject {
                Subject::Sound => "sound",
                Subject::Variant(variant) => variant.name,
            },
            mode: self.mode,
            operations: effort.operations,
            seconds: effort.time.as_secs_f64(),
            damage: damage.map(Damage::to_string),
            expected: self.expected().unwrap_or("none"),
            holds: self.holds(found),
            also: others.map(Damage::to_string).collect(),
            times: None,
            shown: None,
        }
    }
}

/// What was done, and what was found.
#[derive(Debug, Default)]
struct Effort {
    operations: u64,
    time: Duration,
    found: Vec<Damage>,
}

impl Effort {
    /// Both sides did this `rounds` times more.
    fn add(&mut self, rounds: u64, time: Duration) {
        self.operations += 2 * rounds;
        self.time += time;
    }
}

fn replayed(order: &Order, announce: &mut Announce<'_>) -> Result<Outcome, LabError> {
    let Some(times) = order.times else {
        return Ok(order.outcome(&replayed_once(order, announce.text)?));
    };
    let (mut all, mut shown) = (Effort::default(), 0);
    for index in 0..times {
        let once = replayed_once(order, &mut |_| {})?;
        all.operations += once.operations;
        all.time += once.time;
        shown += u32::from(order.is_shown(&once.found));
        // What is told of all of them is the first, or the first that was not as expected.
        if index == 0 || order.holds(&all.found) && !order.holds(&once.found) {
            all.found = once.found;
        }
    }
    Ok(Outcome { times: Some(times), shown: Some(shown), ..order.outcome(&all) })
}

/// Every schedule once.
fn replayed_once(order: &Order, say: &mut dyn FnMut(&str)) -> Result<Effort, LabError> {
    let (engine, mut effort) = (order.engine(), Effort::default());
    for variant in order.variants() {
        let Play::Here { scene, schedule } = variant.play else { continue };
        // With the first line: before that it can still turn out that nothing can be played.
        let gap = if effort.operations > 0 { "\n" } else { "" };
        let mut head = Some(format!("{gap}{}", head(order, variant)));
        let mut tell = |line: &Line| {
            let head = head.take().unwrap_or_default();
            say(&(head + &columns::row(line.side, &line.text)));
        };
        let played = replay(&engine, scene, schedule, &mut tell)?;
        effort.add(1, played.time);
        effort.found.extend(played.damage);
    }
    Ok(effort)
}

/// What stands above the columns of a replay.
fn head(order: &Order, variant: &Variant) -> String {
    let who = match order.subject {
        Subject::Sound => format!("{}, by the schedule of {}", order.race.name, variant.name),
        Subject::Variant(_) => {
            format!("{}, {}: {} is missing", order.race.name, variant.name, variant.lacks.label())
        }
    };
    format!("{who}\n\n{}", order.race.heads())
}

fn stormed(order: &Order, announce: &Announce<'_>) -> Result<Outcome, LabError> {
    let variants = order.variants();
    let limit = order.limit / variants.len().max(1) as u32;
    let (engine, since, mut effort) = (order.engine(), Instant::now(), Effort::default());
    for variant in variants {
        let Play::Here { scene, schedule } = variant.play else { continue };
        let (mut left, mut seed) = (limit, 0);
        while !left.is_zero() {
            seed += 1;
            let before = effort.operations / 2;
            let blown = rounds(&engine, scene, Weather { seed, schedule }, left, &|rounds| {
                let (rounds, seconds) = (before + rounds, since.elapsed().as_secs());
                (announce.progress)(&format!("{rounds} rounds in {seconds} s"));
            })?;
            left = left.saturating_sub(blown.time);
            effort.add(blown.rounds, blown.time);
            effort.found = blown.damage;
            // A step that is left out may do more than one kind of damage; it is asked for one.
            if order.is_shown(&effort.found) {
                return Ok(order.outcome(&effort));
            }
        }
    }
    Ok(order.outcome(&effort))
}

/// The storm that a guest looks at.
fn watched(order: &Order, drive: Drive, announce: &Announce<'_>) -> Result<Outcome, LabError> {
    let (observation, subject): (Option<Observation>, _) = match order.subject {
        Subject::Sound => (order.race.witness, "the sound protocol"),
        Subject::Variant(variant) => (variant.witness, variant.name),
    };
    let race = order.race.name;
    let observe =
        observation.ok_or_else(|| LabError::NoWitness { race, subject, known: witnessed() })?;
    let until = match order.subject {
        Subject::Sound => Until::Time(order.limit),
        Subject::Variant(_) => Until::FirstLoss { at_most: order.limit },
    };
    let seconds = order.limit.as_secs();
    (announce.progress)(&format!("a guest, its devices and collapses, for up to {seconds} s"));
    let _engine = order.engine();
    let report = observe(&Options { drive, until, ..Options::default() })?;
    let damage =
        report.damage().map(|what| Damage::new(order.expected().unwrap_or("damage"), what));
    let operations = report.traffic.pins + report.collapses.promoted + report.collapses.copied;
    let first = report.traffic.first_loss.map(|loss| loss.seconds);
    let time = Duration::from_secs_f64(first.unwrap_or(report.seconds));
    let found = damage.into_iter().collect();
    let mut outcome = order.outcome(&Effort { operations, time, found });
    // A guest that did not come to its end is no sign of the damage that was expected.
    outcome.holds &= order.expected().is_none() || report.lost() > 0;
    Ok(outcome)
}

/// What the model checker has to say of `variant`; `why` says why nobody else has.
fn modelled(
    order: &Order,
    variant: &'static Variant,
    why: Option<&str>,
    announce: &mut Announce<'_>,
) -> Result<Outcome, LabError> {
    if let Some(why) = why {
        let name = variant.name;
        (announce.text)(&format!("{name} cannot be shown by threads on this machine: {why}\n"));
    }
    (announce.text)(&format!("the model checker: {}\n\n", loom::command_line(variant.loom)));
    let modelled = loom::check(variant.loom)?;
    (announce.text)(&format!("{}\n", modelled.text));
    let shown = modelled.shown.then(|| {
        let what = format!("loom has an interleaving that does it, {}", variant.loom);
        Damage::new(variant.damage, what)
    });
    let order = Order { mode: Mode::Model, ..*order };
    let found = shown.into_iter().collect();
    let effort = Effort { operations: modelled.executions, time: modelled.time, found };
    Ok(order.outcome(&effort))
}

/// Whose storms have a guest in them.
fn witnessed() -> Vec<&'static str> {
    let variants = RACES.iter().flat_map(|race| race.variants);
    variants.filter(|variant| variant.witness.is_some()).map(|variant| variant.name).collect()
}
