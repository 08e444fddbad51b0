//! Benchmarks: every figure with its baseline from the same run, as a ratio, against its goal.
//!
//! The machines that this runs on are shared and noisy. Rounds alternate between what is measured and its
//! baseline, and the median round counts.

mod bare;
mod boot;
mod clone;
mod collapse;
mod console;
mod dma;
mod fault;
mod pin;
mod postcopy;
mod restore;
mod ring3;
mod share;
mod table;
mod touch;
mod turns;

use crate::boot::BootError;
use crate::kvm::KvmError;
use crate::machine::MachineError;

pub use boot::{BARE_HELLO, bare_hello, boot};
pub use clone::clone;
pub use collapse::collapse;
pub use dma::dma;
pub use fault::fault;
pub use pin::pin;
pub use postcopy::postcopy;
pub use restore::restore;
pub use ring3::ring3;
pub use share::share;
pub use table::{Goal, Row, Table};

/// How long to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounds {
    /// A first look.
    Quick,
    /// Figures to quote.
    Full,
}

impl Rounds {
    fn count(self) -> usize {
        match self {
            Rounds::Quick => 3,
            Rounds::Full => 9,
        }
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The boot image.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The guest's machine.
    #[error(transparent)]
    Rig(#[from] crate::rig::RigError),
    /// The system.
    #[error("the benchmark could not be set up: {0}")]
    System(std::io::Error),
    /// Debian's guest is not there.
    #[error(
        "{0} is not here: run configs/get-debian.sh, and start this in the folder that has configs"
    )]
    NotFetched(&'static str),
    /// The guest.
    #[error("the benchmark's guest failed: {0}")]
    Guest(String),
    /// The memory service.
    #[error("the benchmark's memory failed: {0}")]
    Memory(Box<dyn std::error::Error + Send + Sync>),
}

/// An error of the memory service's, as a benchmark's.
fn failed(error: impl std::error::Error + Send + Sync + 'static) -> BenchError {
    BenchError::Memory(Box::new(error))
}
