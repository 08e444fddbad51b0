//! The engine that the lab runs: one for all variants, which is told before each run which steps it takes.
//!
//! An engine for each variant would be compiled for it, as the one that ships is. But each is as large as that one, and stands
//! between its functions: the host maps a program's text by neighbourhoods, so a monitor would keep parts of all of them in memory.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mm::protocol::{Protocol, Step, Steps};

use super::cue::reached;
use super::point::Point;

/// What the engine takes. Relaxed: the threads of a run are started after it was written.
static TAKEN: AtomicU32 = AtomicU32::new(Steps::ALL.bits());

/// The protocol of the lab's engine: it takes the steps that were chosen, and says which it is about to take.
#[derive(Debug)]
pub(super) struct Chosen;

impl Protocol for Chosen {
    fn takes(steps: Steps) -> bool {
        Steps::from_bits(TAKEN.load(Relaxed)).contains(steps)
    }

    fn at(step: Step) {
        reached(Point::Step(step));
    }
}

/// The engine, for as long as a run has it.
#[derive(Debug)]
pub(super) struct Engine {
    /// There is one, so runs come one after the other. What a run has left behind, because it is stuck, goes on by the
    /// steps of the next, in memory of its own.
    _alone: MutexGuard<'static, ()>,
}

impl Engine {
    /// An engine that takes `steps`, when no other run has it any more.
    pub(super) fn of(steps: Steps) -> Engine {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        TAKEN.store(steps.bits(), Relaxed);
        Engine { _alone: alone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_takes_what_its_run_has_chosen() {
        let some = Steps::ALL.without(Steps::P5_RECHECK_PDE);
        let engine = Engine::of(some);
        assert!(Chosen::takes(some) && !Chosen::takes(Steps::P5_RECHECK_PDE));
        drop(engine);
        let _engine = Engine::of(Steps::ALL);
        assert!(Chosen::takes(Steps::ALL));
    }
}
