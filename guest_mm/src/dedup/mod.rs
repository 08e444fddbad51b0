//! Pages of the same bytes are found and become one frame, over all guests of a service: what KSM is for Linux.
//!
//! Round by round, a [`scanner`] looks at every page of every guest that is the guest's own, exclusive and not pinned:
//!
//! ```text
//! D1 copy the page, take the copy's checksum           the guest may be writing: a checksum is a hint, never a proof
//! D2 as it was in the round before? else it is volatile, and that is all
//! D3 all zeroes, over no image? then it goes           share::drop_zeroes looks again, with the guest kept out
//! D4 a shared page of this checksum (`stable`)?        share::replace compares, with the guest kept out
//!    then it is replaced by that
//! D5 another page of this checksum in this round       share::make_shared, then as D4; the scanner keeps a reference
//!    (`seen`)? then that one becomes a shared page        of its own on the shared frame
//! D6 else it is noted as seen
//! ```
//!
//! At the end of a round what nobody but the scanner keeps goes back to the pool. What a pin relies on is never shared,
//! and what is compared is not being written to: those are the protocols of [`crate::share`]; nothing here is needed
//! for them.
//!
//! What it costs a guest: a store to a merged page copies it, and a merged page that the guest reads is usually a mapping of
//! its own in the window, of which a process has few (`vm.max_map_count`, 65,530). So there is a budget,
//! [`DedupPolicy::max_merged`]; pages of zeroes cost none, because they become untouched memory.
//!
//! Memory: 4 bytes for each page of RAM, which is its last checksum in short; 17 to 34 for each page seen in a round;
//! some 60 for each shared frame.
//!
//! # Known holes
//! * A huge leaf is not split by default, so pages in it are not found. [`Splitting::Allowed`] finds them.
//! * Frames whose last user has gone since the end of a round stay in use until the end of the next, though the pool be
//!   exhausted meanwhile.
//! * Stores to merged pages need frames: with more RAM merged than the pool has free, a guest can be stopped for want of
//!   memory by a store to a page that it had before.

mod checksum;
mod notes;
mod scanner;
mod shelf;
mod stats;

use std::sync::Arc;
use std::time::Duration;

use crate::background::{Background, Pace, Workplace};
use crate::protocol::Protocol;

pub(crate) use scanner::Scanner;
pub use stats::DedupStats;

/// What may be merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DedupPolicy {
    /// Pages of a guest that may be merged at one time. Pages of zeroes do not count.
    pub max_merged: u32,
    /// What becomes of huge leaves.
    pub splitting: Splitting,
}

impl Default for DedupPolicy {
    fn default() -> DedupPolicy {
        DedupPolicy { max_merged: 16384, splitting: Splitting::Never }
    }
}

/// Whether huge leaves are split for pages in them that can be merged or dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Splitting {
    /// They stay, and are not looked at: every access of the guest gains from a huge page, and a few frames are
    /// little beside that.
    Never,
    /// Their pages are looked at one by one; the first that can be merged or dropped splits its block.
    Allowed,
}

/// How eagerly a thread looks for such pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DedupConfig {
    /// What it may do.
    pub policy: DedupPolicy,
    /// Pages to look at in a second. None: without a pause.
    pub scan_rate: Option<u32>,
}

impl Default for DedupConfig {
    fn default() -> DedupConfig {
        DedupConfig { policy: DedupPolicy::default(), scan_rate: Some(16384) }
    }
}

/// How long to wait after a round in which there was nothing to look at.
const IDLE: Duration = Duration::from_millis(20);

/// Starts a thread that scans.
///
/// # Errors
/// What the system says about another thread.
pub(crate) fn start<P: Protocol>(
    scanner: &Arc<Workplace<Scanner<P>>>,
    config: DedupConfig,
) -> std::io::Result<Background<Scanner<P>>> {
    Background::start(scanner, "dedup", move |place| {
        let mut pace = Pace::per_second(config.scan_rate);
        let mut idle = true;
        while let Some(mut scanner) = place.turn(pace.due()) {
            let step = scanner.step(config.policy);
            idle &= step.looked == 0;
            pace.done(step.looked);
            if step.ends_round {
                if idle {
                    pace.idle(IDLE);
                }
                idle = true;
            }
        }
    })
}

/// Scans `rounds` times, or what is left of a round that is under way and then as often.
pub(crate) fn scan<P: Protocol>(
    scanner: &Workplace<Scanner<P>>,
    policy: DedupPolicy,
    rounds: u32,
) -> DedupStats {
    let last = {
        let scanner = scanner.visit();
        scanner.rounds() + u64::from(rounds) + u64::from(scanner.is_under_way())
    };
    loop {
        // The lock is let go between steps: guests go, and others look.
        let mut scanner = scanner.visit();
        if scanner.rounds() >= last {
            return scanner.stats();
        }
        scanner.step(policy);
    }
}
