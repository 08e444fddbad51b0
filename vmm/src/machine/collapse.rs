//! Huge pages out of small ones: by themselves, and when somebody asks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use guest_mm::addr::{GfnRange, PageSize};
use guest_mm::collapse::{CollapserStats, Skip};

use crate::control::{CollapseOutcome, Collapser};

use super::memory::ServedRam;

/// How long a client is kept waiting by a collapse of all RAM. Whoever comes next waits for it, too.
const LONGEST: Duration = Duration::from_secs(3);

/// What that thread did, by names.
pub(super) fn told(stats: CollapserStats) -> Collapser {
    let by_name = Skip::NAMES.iter().zip(stats.skipped).filter(|&(_, count)| count > 0);
    Collapser {
        paused: stats.paused,
        rounds: stats.rounds,
        scanned: stats.scanned,
        promoted: stats.promoted,
        copied: stats.copied,
        skipped: by_name.map(|(name, count)| ((*name).to_owned(), count)).collect(),
        backed_off: stats.backed_off,
        failed: stats.failed,
    }
}

impl ServedRam {
    /// Collapses all of RAM, block by block, until `stopped` or for [`LONGEST`]; what became of it.
    pub(super) fn collapse_all(&self, stopped: impl Fn() -> bool) -> CollapseOutcome {
        let until = Instant::now() + LONGEST;
        let guest = self.guest();
        let mut outcome = CollapseOutcome::default();
        let mut skipped = BTreeMap::<&str, u64>::new();
        let ram = guest.windows().map(|(range, _)| range);
        for block in ram.flat_map(|range: GfnRange| range.chunks(PageSize::Size2M.frames())) {
            outcome.blocks += 1;
            if stopped() || Instant::now() >= until {
                outcome.left += 1;
                continue;
            }
            match guest.collapse(block, self.policy()) {
                Ok(report) => {
                    outcome.promoted += report.promoted;
                    outcome.copied += report.copied;
                    outcome.already_huge += report.already_huge;
                    outcome.holes_filled += report.holes_filled;
                    for skip in report.skipped {
                        *skipped.entry(Skip::NAMES[skip.why.index()]).or_default() += 1;
                    }
                }
                Err(error) => {
                    outcome.failed += 1;
                    outcome.failure.get_or_insert_with(|| error.to_string());
                }
            }
        }
        outcome.skipped = skipped.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
        outcome
    }

    /// Lets the collapser rest for good; what it did, and whether somebody had paused it before.
    pub(super) fn rest_collapser(&self) -> Option<CollapserStats> {
        let guest = self.guest();
        let paused = guest.collapser_stats()?.paused;
        guest.pause_collapser();
        Some(CollapserStats { paused, ..guest.collapser_stats()? })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Host, MachineConfig};

    /// A client that asks for all of a large guest must not keep its machine from ending.
    #[test]
    fn a_collapse_of_all_ram_stops_when_the_machine_does() {
        if !::tests::require_userfaultfd() {
            return;
        }
        let host = Host { phys_bits: 46, runs_ring0: true };
        let text = "boot.guest = 'hello'\n[memory]\nsize = '15M'";
        let config = MachineConfig::parse(text, Path::new("x.toml"), &[], host).unwrap();
        let ram = ServedRam::new(&config.memory, Box::new(|_| ())).unwrap();
        let ram = ram.collapsed_as(&config.collapse).unwrap();
        let whole = ram.collapse_all(|| false);
        assert_eq!((whole.blocks, whole.left), (8, 0));
        assert_eq!(whole.skipped.values().sum::<u64>(), 8, "{whole:?}");
        let asked = std::cell::Cell::new(0);
        let cut = ram.collapse_all(|| asked.replace(asked.get() + 1) >= 3);
        assert_eq!((cut.blocks, cut.left), (8, 5), "{cut:?}");
        ram.close().unwrap();
    }
}
