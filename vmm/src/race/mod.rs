//! The races that the memory service was built against, made to happen on the engine that ships.
//!
//! ```text
//! lab                  runs one race, and says what came of it
//! catalog  races/      which races there are; a file for each, with its sides and its schedules; variant: what a race is
//! replay/              one interleaving, step by step       rounds   both sides at once, over and over, with chance
//! storm/               devices, collapses and a KVM guest   loom     the model checker, for what x86 cannot show
//! scene  world         what a race does, and the memory that it does it to; window: as a vCPU sees that
//! engine               the one that is run: which steps it takes is chosen before
//! cue                  it says which step it is about to take; this hears it
//! stage/  point        whose turn it is, and where a thread can be held
//! damage  error  dice
//! ```
//!
//! With [`guest_mm::protocol::Sound`] there is no damage; a protocol that leaves a step out shows what the step is good for.
//!
//! One more race is one more file in `races/` and its line in `catalog.rs`.

mod catalog;
mod cue;
mod damage;
mod dice;
mod engine;
mod error;
mod lab;
mod loom;
mod point;
mod races;
mod replay;
mod rounds;
mod scene;
mod stage;
mod storm;
mod variant;
mod window;
mod world;

pub use catalog::{RACES, find, page};
pub use error::LabError;
pub use lab::{Announce, Mode, Order, Outcome, Subject, Witness, run};
pub use storm::{
    Collapses, Drive, Loss, Options, Report, StormError, Traffic, Until, Verdict, storm,
};
pub use variant::{Race, Variant};
