//! What a race is, and its variants.

use guest_mm::protocol::{Step, Steps};

use super::error::LabError;
use super::replay::columns;
use super::scene::Scene;
use super::stage::Turn;
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
    /// The steps that the engine takes with it.
    pub(super) steps: Steps,
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
        /// What the sides do.
        scene: &'static dyn Scene,
        /// The interleaving that does the damage.
        schedule: &'static [Turn],
    },
    /// By the model checker alone: this machine keeps in order what the step would.
    Modelled {
        /// Why it does.
        why: &'static str,
    },
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
