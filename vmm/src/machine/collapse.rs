//! Huge pages out of small ones: by themselves, and when somebody asks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use guest_mm::CollapserConfig;
use guest_mm::addr::{GfnRange, PageSize};
use guest_mm::collapse::{CollapsePolicy, CollapserStats, Copying, Skip};

use crate::config::Collapse;
use crate::control::{CollapseOutcome, Collapser};

use super::memory::ServedRam;

/// How long a client is kept waiting by a collapse of all RAM. Whoever comes next waits for it, too.
const LONGEST: Duration = Duration::from_secs(3);

/// What a collapse may do.
pub(super) fn policy(config: &Collapse) -> CollapsePolicy {
    let copying = if config.copying.value { Copying::Allowed } else { Copying::Never };
    CollapsePolicy { max_holes: config.max_holes.value, copying }
}

/// The same for the thread that collapses by itself, with its pace.
pub(super) fn collapser(config: &Collapse) -> CollapserConfig {
    CollapserConfig {
        policy: policy(config),
        scan_rate: config.scan_rate.value.limit(),
        copy_budget: config.copy_budget.value.limit(),
    }
}

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

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let host = Host { phys_bits: 46 };
        let text = "boot.guest = 'hello'";
        let config = MachineConfig::parse(text, Path::new("x.toml"), &[], host).unwrap();
        assert_eq!(collapser(&config.collapse), CollapserConfig::default());
    }

    /// A client that asks for all of a large guest must not keep its machine from ending.
    #[test]
    fn a_collapse_of_all_ram_stops_when_the_machine_does() {
        if !::tests::require_userfaultfd() {
            return;
        }
        let host = Host { phys_bits: 46 };
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

    #[test]
    fn a_config_reaches_the_library() {
        let sets = ["max_holes=7", "copying=false", "scan_rate=unlimited", "copy_budget=9"];
        let sets = sets.map(|set| format!("collapse.{set}"));
        let host = Host { phys_bits: 46 };
        let text = "boot.guest = 'hello'";
        let config = MachineConfig::parse(text, Path::new("x.toml"), &sets, host).unwrap();
        let policy = CollapsePolicy { max_holes: 7, copying: Copying::Never };
        let expected = CollapserConfig { policy, scan_rate: None, copy_budget: Some(9) };
        assert_eq!(collapser(&config.collapse), expected);
    }
}
