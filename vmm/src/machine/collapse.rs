//! Huge pages out of small ones: by themselves, and when somebody asks.

use guest_mm::CollapserConfig;
use guest_mm::collapse::{CollapsePolicy, CollapserStats, Copying};

use crate::config::Collapse;

use super::memory::ServedRam;

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

impl ServedRam {
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
