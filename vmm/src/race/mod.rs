//! The races that the memory service was built against, made to happen.
//!
//! A storm is real threads and a real guest at once, on the engine that ships, until damage shows or the time is over. With
//! [`guest_mm::protocol::Sound`] there is none; a protocol that leaves a step out shows what the step is good for.

mod storm;

pub use storm::{Collapses, Loss, Options, Report, StormError, Traffic, Until, Verdict, storm};
