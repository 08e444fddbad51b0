//! Runs a race, and says what came of it.

use std::time::{Duration, Instant};

use guest_mm::pool::BackingError;
use guest_mm::service::GuestError;

use super::catalog::{Observation, Play, RACES, Race, Variant};
use super::damage::Damage;
use super::replay::{Line, columns};
use super::{Options, StormError, Until, loom};

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
    /// A KVM guest, too.
    Guest,
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

/// What came of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Outcome {
    /// The race.
    pub race: &'static str,
    /// The variant, or `sound`.
    pub variant: &'static str,
    /// How it was run.
    pub mode: Mode,
    /// What the two sides did, counted by side; interleavings, if the model checker ran.
    pub operations: u64,
    /// How long it took; in a storm, until the damage was noticed.
    pub seconds: f64,
    /// What went wrong, if anything did.
    pub damage: Option<String>,
    /// The kind of damage that was expected, or `none`.
    pub expected: &'static str,
    /// Whether what was expected is what came of it.
    pub holds: bool,
    /// What else went wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// Replays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// Those of them that did damage: of a variant, the damage that was expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shown: Option<u32>,
}

/// Who is told what happens.
pub struct Announce<'a> {
    /// Text, as it comes.
    pub text: &'a mut dyn FnMut(&str),
    /// How far it is.
    pub progress: &'a dyn Fn(&str),
}

/// Why a race was not run.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// There is no such race.
    #[error("there is no race {0:?}: the races are {names}", names = listed(RACES.iter().map(|race| race.name)))]
    NoRace(String),
    /// The race has no such variant.
    #[error("{} has no variant {name:?}: its variants are {names}", race.name,
        names = listed(race.variants.iter().map(|variant| variant.name)))]
    NoVariant {
        /// The race.
        race: &'static Race,
        /// What was asked for.
        name: String,
    },
    /// No guest can look on.
    #[error(
        "{subject} of {race} has no storm with a guest in it: leave out --guest, or choose one of {}",
        listed(observed())
    )]
    NoWitness {
        /// The race.
        race: &'static str,
        /// The variant.
        subject: &'static str,
    },
    /// A guest looks on in storms only.
    #[error("--guest is for storms: leave it out, or add --mode storm")]
    NotAStorm,
    /// The protocol that ships has no failing model.
    #[error("the model checker is shown one variant at a time: add --variant with one of {}",
        listed(.0.variants.iter().map(|variant| variant.name)))]
    NothingToModel(&'static Race),
    /// The memory cannot be had.
    #[error(transparent)]
    Pool(#[from] BackingError),
    /// The guest cannot be had: there is no userfaultfd, mostly.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The guest that looks on cannot be had.
    #[error(transparent)]
    Storm(#[from] StormError),
    /// The model checker needs the source.
    #[error("the source is not where slat was built: run {0:?} in a checkout of it")]
    NoSource(String),
    /// The model checker cannot be started.
    #[error("cargo cannot be started for {line:?}: {source}")]
    NoCargo {
        /// What was tried.
        line: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl LabError {
    /// Whether what was typed is to blame.
    pub fn is_bad_input(&self) -> bool {
        use LabError::{NoRace, NoVariant, NoWitness, NotAStorm, NothingToModel};
        matches!(
            self,
            NoRace(_) | NoVariant { .. } | NoWitness { .. } | NotAStorm | NothingToModel(_)
        )
    }
}

fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// Whose storms have a guest in them.
fn observed() -> impl Iterator<Item = &'static str> {
    let variants = RACES.iter().flat_map(|race| race.variants);
    variants.filter(|variant| variant.witness.is_some()).map(|variant| variant.name)
}

/// Does what `order` says.
///
/// # Errors
/// [`LabError`]: it could not begin.
pub fn run(order: &Order, announce: &mut Announce<'_>) -> Result<Outcome, LabError> {
    if order.witness == Witness::Guest {
        if order.mode != Mode::Storm {
            return Err(LabError::NotAStorm);
        }
        return watched(order, announce);
    }
    match (order.mode, order.subject) {
        (Mode::Model, Subject::Sound) => Err(LabError::NothingToModel(order.race)),
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

    /// The kind of damage that is expected.
    fn expected(&self) -> Option<&'static str> {
        match self.subject {
            Subject::Sound => None,
            Subject::Variant(variant) => Some(variant.damage),
        }
    }

    /// Of `found`, what shows that the order holds or does not: the damage that is expected, or else any.
    fn telling<'d>(&self, found: &'d [Damage]) -> Option<&'d Damage> {
        let expected = found.iter().find(|damage| Some(damage.kind) == self.expected());
        expected.or(found.first())
    }

    /// Whether `damage` is what is expected.
    fn is_expected(&self, damage: Option<&Damage>) -> bool {
        damage.map(|damage| damage.kind) == self.expected()
    }

    fn outcome(&self, operations: u64, time: Duration, found: &[Damage]) -> Outcome {
        let damage = self.telling(found);
        let others = found.iter().filter(|&other| Some(other) != damage);
        Outcome {
            race: self.race.name,
            variant: match self.subject {
                Subject::Sound => "sound",
                Subject::Variant(variant) => variant.name,
            },
            mode: self.mode,
            operations,
            seconds: time.as_secs_f64(),
            damage: damage.map(Damage::to_string),
            expected: self.expected().unwrap_or("none"),
            holds: self.is_expected(damage),
            also: others.map(Damage::to_string).collect(),
            times: None,
            shown: None,
        }
    }
}

/// Of the engines of `variant`, that of `subject`.
fn engine(subject: Subject, variant: &Variant) -> Option<(super::catalog::Engine, Turns)> {
    let Play::Here { schedule, broken, sound } = variant.play else { return None };
    let engine = if let Subject::Sound = subject { sound } else { broken };
    Some((engine, schedule))
}

type Turns = &'static [super::replay::Turn];

fn replayed(order: &Order, announce: &mut Announce<'_>) -> Result<Outcome, LabError> {
    let times = order.times.unwrap_or(1);
    let (mut operations, mut time, mut shown) = (0, Duration::ZERO, 0);
    // What to tell of all of them: the first that was not as expected, or else the first.
    let mut told: Option<Vec<Damage>> = None;
    for _ in 0..times {
        let mut found = Vec::new();
        for (index, variant) in order.variants().into_iter().enumerate() {
            let Some((engine, schedule)) = engine(order.subject, variant) else { continue };
            let gap = if index > 0 { "\n" } else { "" };
            let mut head = Some(format!("{gap}{}", head(order, variant)));
            let mut tell = |line: &Line| {
                if order.times.is_none() {
                    let head = head.take().unwrap_or_default();
                    (announce.text)(&(head + &columns::row(line.side, &line.text)));
                }
            };
            let played = (engine.replay)(schedule, &mut tell)?;
            (operations, time) = (operations + 2, time + played.time);
            found.extend(played.damage);
        }
        let damage = order.telling(&found);
        let counts = match order.subject {
            Subject::Sound => damage.is_some(),
            Subject::Variant(_) => order.is_expected(damage),
        };
        shown += u32::from(counts);
        let is_news = told.as_ref().is_none_or(|before| {
            order.is_expected(order.telling(before)) && !order.is_expected(damage)
        });
        if is_news {
            told = Some(found);
        }
    }
    let mut outcome = order.outcome(operations, time, &told.unwrap_or_default());
    if order.times.is_some() {
        (outcome.times, outcome.shown) = (Some(times), Some(shown));
    }
    Ok(outcome)
}

/// What stands above the columns of a replay.
fn head(order: &Order, variant: &Variant) -> String {
    let who = match order.subject {
        Subject::Sound => format!("{}, by the schedule of {}", order.race.name, variant.name),
        Subject::Variant(_) => {
            format!("{}, {}: {} is missing", order.race.name, variant.name, variant.lacks.label())
        }
    };
    format!("{who}\n\n{}", columns::heads(order.race.sides))
}

fn stormed(order: &Order, announce: &Announce<'_>) -> Result<Outcome, LabError> {
    let variants = order.variants();
    let limit = order.limit / variants.len().max(1) as u32;
    let (since, mut operations, mut time, mut found) =
        (Instant::now(), 0, Duration::ZERO, Vec::new());
    for variant in variants {
        let Some((engine, _)) = engine(order.subject, variant) else { continue };
        let blown = (engine.storm)(limit, &|rounds| {
            let seconds = since.elapsed().as_secs();
            let rounds = operations / 2 + rounds;
            (announce.progress)(&format!("{rounds} rounds in {seconds} s, no damage"));
        })?;
        (operations, time) = (operations + 2 * blown.rounds, time + blown.time);
        found.extend(blown.damage);
        if !found.is_empty() {
            break;
        }
    }
    Ok(order.outcome(operations, time, &found))
}

/// The storm that a guest looks at.
fn watched(order: &Order, announce: &Announce<'_>) -> Result<Outcome, LabError> {
    let (observation, subject): (Option<Observation>, _) = match order.subject {
        Subject::Sound => (order.race.witness, "the sound protocol"),
        Subject::Variant(variant) => (variant.witness, variant.name),
    };
    let race = order.race.name;
    let observe = observation.ok_or(LabError::NoWitness { race, subject })?;
    let until = match order.subject {
        Subject::Sound => Until::Time(order.limit),
        Subject::Variant(_) => Until::FirstLoss { at_most: order.limit },
    };
    let seconds = order.limit.as_secs();
    (announce.progress)(&format!("a guest, its devices and collapses, for up to {seconds} s"));
    let report = observe(&Options { until, ..Options::default() })?;
    let damage =
        report.damage().map(|what| Damage::new(order.expected().unwrap_or("damage"), what));
    let operations = report.traffic.pins + report.collapses.promoted + report.collapses.copied;
    let first = report.traffic.first_loss.map(|loss| loss.seconds);
    let time = Duration::from_secs_f64(first.unwrap_or(report.seconds));
    let mut outcome = order.outcome(operations, time, damage.as_slice());
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
    Ok(order.outcome(modelled.executions, modelled.time, shown.as_slice()))
}

impl Outcome {
    /// It in a sentence or two.
    pub fn text(&self, race: &Race) -> String {
        let (seconds, operations) = (self.seconds, self.operations);
        let effort = match (self.mode, self.times, self.shown) {
            (Mode::Replay, Some(times), Some(shown)) => {
                let each = 1000.0 * seconds / f64::from(times.max(1));
                format!("{shown} of {times} replays did damage, {each:.1} ms each\n")
            }
            (Mode::Storm, ..) => format!("{operations} operations in {seconds:.2} s\n"),
            _ => String::new(),
        };
        let verdict = match &self.damage {
            None if self.holds => format!("held: {}\n", race.held),
            None => format!("no damage; expected: {}\n", self.expected),
            Some(damage) if self.holds => format!("damage: {damage}\n"),
            Some(damage) => format!("damage: {damage}; expected: {}\n", self.expected),
        };
        let also: String = self.also.iter().map(|also| format!("and: {also}\n")).collect();
        effort + &verdict + &also
    }
}
