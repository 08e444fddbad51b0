//! What a race is, and its variants.

use std::time::Duration;

use guest_mm::protocol::{Observed, Protocol, Sound, Step};

use super::cue::Cue;
use super::error::LabError;
use super::replay::{Played, columns, replay};
use super::rounds::{Blown, Weather, rounds};
use super::scene::Scene;
use super::stage::{Line, Turn};
use super::storm::{Options, Report, StormError};

/// Two protocols' sides that meet on one page.
#[derive(Debug)]
pub struct Race {
    /// Its name, which is that of its protocol block.
    pub name: &'static str,
    /// Who meets whom, in a line.
    pub what: &'static str,
    /// Who the two columns are.
    pub(super) sides: [&'static str; 2],
    /// What there is to say when nothing went wrong.
    pub(super) held: &'static str,
    /// The storm in which a KVM guest is witness, with the protocol that ships.
    pub(super) witness: Option<Observation>,
    /// A protocol for each step that history left out.
    pub variants: &'static [Variant],
}

/// A protocol that leaves one step out.
#[derive(Debug)]
pub struct Variant {
    /// Its name.
    pub name: &'static str,
    /// What it does not do.
    pub what: &'static str,
    /// The step that this leaves out or puts in the wrong place.
    pub lacks: Step,
    /// Who did so, or mended it.
    pub origin: &'static str,
    /// The kind of damage that it is expected to do.
    pub damage: &'static str,
    /// How it is seen on this kind of machine.
    pub(super) play: Play,
    /// The storm in which a KVM guest is witness.
    pub(super) witness: Option<Observation>,
    /// The model checker's test that fails in it, as is expected of it.
    pub loom: &'static str,
}

/// A storm with a KVM guest in it.
pub(super) type Observation = fn(&Options) -> Result<Report, StormError>;

/// How a variant is seen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Play {
    /// On real threads.
    Here {
        /// The interleaving that does the damage.
        schedule: &'static [Turn],
        /// The engine without the step, and the one that ships.
        broken: Engine,
        /// Likewise.
        sound: Engine,
    },
    /// By the model checker alone: this machine keeps in order what the step would.
    Modelled {
        /// Why it does.
        why: &'static str,
    },
}

/// A scene on one engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Engine {
    pub(super) replay: Replay,
    pub(super) storm: Storm,
}

/// See [`replay`].
type Replay = fn(&[Turn], &mut dyn FnMut(&Line)) -> Result<Played, LabError>;
/// See [`rounds`].
type Storm = fn(Weather, Duration, &dyn Fn(u64)) -> Result<Blown, LabError>;

impl Play {
    /// The scene `S` by `schedule`, on the engine that follows `P`.
    pub(super) const fn here<P: Protocol, S: Scene>(schedule: &'static [Turn]) -> Play {
        Play::Here { schedule, broken: Engine::of::<P, S>(), sound: Engine::of::<Sound, S>() }
    }
}

impl Engine {
    const fn of<P: Protocol, S: Scene>() -> Engine {
        Engine { replay: replay::<Observed<P, Cue>, S>, storm: rounds::<Observed<P, Cue>, S> }
    }
}

impl Race {
    /// Its variant `name`.
    ///
    /// # Errors
    /// [`LabError::NoVariant`].
    pub fn variant(&'static self, name: &str) -> Result<&'static Variant, LabError> {
        let found = self.variants.iter().find(|variant| variant.name == name);
        found.ok_or_else(|| LabError::NoVariant {
            race: self.name,
            name: name.into(),
            known: self.variant_names(),
        })
    }

    /// The names of its variants.
    pub(super) fn variant_names(&self) -> Vec<&'static str> {
        self.variants.iter().map(|variant| variant.name).collect()
    }

    /// The heads of its columns, as a line.
    pub fn heads(&self) -> String {
        columns::heads(self.sides)
    }
}

impl Variant {
    /// Whether real threads can show it on x86.
    pub fn shows_on_x86(&self) -> bool {
        matches!(self.play, Play::Here { .. })
    }

    /// The interleaving of its replay, or why it has none.
    pub fn schedule(&self) -> Result<String, &'static str> {
        match self.play {
            Play::Here { schedule, .. } => Ok(columns::schedule(schedule)),
            Play::Modelled { why } => Err(why),
        }
    }
}
