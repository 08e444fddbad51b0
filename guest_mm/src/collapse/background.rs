//! A thread that looks for blocks to collapse.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::addr::GfnRange;
use crate::background::{Background, Pace, Workplace};
use crate::geometry::Level;
use crate::protocol::Protocol;
use crate::space::AddressSpace;

use super::{CollapsePolicy, Collapsed, Copying, Skip, collapse_block};

/// How eagerly to collapse.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CollapserConfig {
    /// What it may do.
    pub policy: CollapsePolicy,
    /// Blocks to look at in a second, most of which need nothing. None: without a pause.
    pub scan_rate: Option<u32>,
    /// Blocks to copy in a second: each is some 100 us of a CPU, in which its guest has to wait for it.
    /// None: as many as are found. Promotions cost next to nothing and do not count.
    pub copy_budget: Option<u32>,
}

impl Default for CollapserConfig {
    fn default() -> CollapserConfig {
        CollapserConfig {
            policy: CollapsePolicy::default(),
            scan_rate: Some(1024),
            copy_budget: Some(64),
        }
    }
}

/// What the thread did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct CollapserStats {
    /// Whether it is paused.
    pub paused: bool,
    /// Times that all of RAM was looked at.
    pub rounds: u64,
    /// Blocks looked at.
    pub scanned: u64,
    /// Blocks promoted in place.
    pub promoted: u64,
    /// Blocks gathered in another.
    pub copied: u64,
    /// Blocks that stayed as they were, by reason: see [`Skip::NAMES`].
    #[serde(serialize_with = "by_name")]
    pub skipped: [u64; Skip::NAMES.len()],
    /// Blocks passed over because a device had them pinned not long ago.
    pub backed_off: u64,
    /// Blocks whose window could not be changed.
    pub failed: u64,
}

/// Writes counts by reason as a map.
fn by_name<S: serde::Serializer>(
    counts: &[u64; Skip::NAMES.len()],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(Skip::NAMES.iter().zip(counts))
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Collapser(Background<CollapserStats>);

/// Rounds that a block is passed over after it was found pinned so often in a row.
const BACK_OFF: [u64; 6] = [1, 2, 4, 8, 16, 32];

impl Collapser {
    /// Starts it.
    ///
    /// # Errors
    /// What the system says about another thread.
    pub(crate) fn start<P: Protocol>(
        space: &Arc<AddressSpace<P>>,
        config: CollapserConfig,
    ) -> std::io::Result<Collapser> {
        let place = Arc::new(Workplace::new(CollapserStats::default()));
        let worker = Worker {
            space: Arc::clone(space),
            config,
            pinned: HashMap::new(),
            next_copy: Instant::now(),
        };
        Background::start(&place, "collapser", move |place| worker.run(place)).map(Collapser)
    }

    /// Collapses nothing until [`Collapser::resume`]; a block that is being collapsed is done when this
    /// returns.
    pub(crate) fn pause(&self) {
        self.0.place().pause();
    }

    /// Goes on.
    pub(crate) fn resume(&self) {
        self.0.place().resume();
    }

    /// What it did so far.
    pub(crate) fn stats(&self) -> CollapserStats {
        let stats = self.0.place().visit();
        CollapserStats { paused: stats.is_paused(), ..*stats }
    }
}

struct Worker<P: Protocol> {
    space: Arc<AddressSpace<P>>,
    config: CollapserConfig,
    /// Blocks that were found pinned: how often in a row, and the round in which to look again.
    pinned: HashMap<GfnRange, (usize, u64)>,
    /// No block is copied before.
    next_copy: Instant,
}

impl<P: Protocol> Worker<P> {
    fn run(mut self, place: &Workplace<CollapserStats>) {
        let space = Arc::clone(&self.space);
        let blocks = || {
            let regions = space.ram.iter();
            regions.flat_map(|region| region.range.chunks(Level::PD.entry_frames()))
        };
        let mut pace = Pace::per_second(self.config.scan_rate);
        loop {
            for block in blocks() {
                let Some(mut stats) = place.turn(pace.due()) else { return };
                self.look_at(&mut stats, block);
                pace.done(1);
            }
            place.visit().rounds += 1;
        }
    }

    /// Collapses the block if it can be.
    fn look_at(&mut self, stats: &mut CollapserStats, block: GfnRange) {
        if self.pinned.get(&block).is_some_and(|&(_, round)| stats.rounds < round) {
            stats.backed_off += 1;
            return;
        }
        stats.scanned += 1;
        let mut policy = self.config.policy;
        if Instant::now() < self.next_copy {
            policy.copying = Copying::Never;
        }
        let result = collapse_block(&self.space, block, policy);
        if let Ok(Collapsed::Skipped(Skip::Pinned { .. })) = result {
            let (times, round) = self.pinned.entry(block).or_insert((0, 0));
            *round = stats.rounds + 1 + BACK_OFF[(*times).min(BACK_OFF.len() - 1)];
            *times += 1;
        } else {
            self.pinned.remove(&block);
        }
        match result {
            Ok(Collapsed::Promoted { .. }) => stats.promoted += 1,
            Ok(Collapsed::Copied { .. }) => {
                stats.copied += 1;
                if let Some(budget) = self.config.copy_budget {
                    self.next_copy = Instant::now() + Duration::from_secs(1) / budget.max(1);
                }
            }
            Ok(Collapsed::AlreadyHuge) => {}
            Ok(Collapsed::Skipped(why)) => stats.skipped[why.index()] += 1,
            Err(_) => stats.failed += 1,
        }
    }
}
