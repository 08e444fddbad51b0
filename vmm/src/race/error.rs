//! Why a race was not run.

use guest_mm::image::ImageError;
use guest_mm::pool::BackingError;
use guest_mm::service::GuestError;

use super::storm::StormError;

/// Why a race was not run.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// There is no such race.
    #[error("there is no race {name:?}: the races are {}", listed(known))]
    NoRace {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// The race has no such variant.
    #[error("{race} has no variant {name:?}: its variants are {}", listed(known))]
    NoVariant {
        /// The race.
        race: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// No guest can look on.
    #[error(
        "{subject} of {race} has no storm with a guest in it: leave out --guest, or choose one of {}",
        listed(known)
    )]
    NoWitness {
        /// The race.
        race: &'static str,
        /// The variant.
        subject: &'static str,
        /// Whose storms have a guest in them.
        known: Vec<&'static str>,
    },
    /// A guest looks on in storms only.
    #[error("--guest is for storms: leave it out, or add --mode storm")]
    NotAStorm,
    /// The protocol that ships has no failing model.
    #[error(
        "the model checker is shown one variant at a time: add --variant with one of {}",
        listed(known)
    )]
    NothingToModel {
        /// The variants.
        known: Vec<&'static str>,
    },
    /// The memory cannot be had.
    #[error(transparent)]
    Pool(#[from] BackingError),
    /// The guest cannot be had: there is no userfaultfd, mostly.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// There is no file for an image.
    #[error("cannot make a file in memory for an image: {0}")]
    ImageFile(std::io::Error),
    /// The image cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
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
            NoRace { .. } | NoVariant { .. } | NoWitness { .. } | NotAStorm | NothingToModel { .. }
        )
    }
}

fn listed(names: &[&str]) -> String {
    names.join(", ")
}
