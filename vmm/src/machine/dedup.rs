//! Pages of the same bytes become one.

use guest_mm::DedupConfig;
use guest_mm::dedup::{DedupPolicy, DedupStats, Splitting};

use crate::config::Dedup;

use super::MachineError;
use super::memory::ServedRam;

impl ServedRam {
    /// The same memory, its pages merged as `config` says: by a thread from now on, if there is to be one.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn merged_as(self, config: &Dedup) -> Result<Self, MachineError> {
        // Machines that share a pool share the scanner, too.
        if config.background.value && !self.commons().service().has_dedup() {
            self.commons().service().start_dedup(scanner(config)).map_err(|source| {
                MachineError::System { what: "starting the scanner for duplicates", source }
            })?;
        }
        Ok(self)
    }

    /// What the scanner did so far, if one runs.
    pub(super) fn dedup_stats(&self) -> Option<DedupStats> {
        self.commons().service().has_dedup().then(|| self.commons().service().dedup_stats())
    }

    /// Lets the scanner rest for good; what it did, and whether somebody had paused it before.
    pub(super) fn rest_dedup(&self) -> Option<DedupStats> {
        let paused = self.dedup_stats()?.paused;
        self.commons().service().pause_dedup();
        Some(DedupStats { paused, ..self.dedup_stats()? })
    }
}

fn scanner(config: &Dedup) -> DedupConfig {
    let splitting = if config.split_huge.value { Splitting::Allowed } else { Splitting::Never };
    let policy = DedupPolicy { max_merged: config.max_merged.value, splitting };
    DedupConfig { policy, scan_rate: config.scan_rate.value.limit() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Host, MachineConfig};

    fn config(sets: &[&str]) -> DedupConfig {
        let sets: Vec<String> = sets.iter().map(|set| format!("dedup.{set}")).collect();
        let host = Host { phys_bits: 46, runs_ring0: true };
        let text = "boot.guest = 'hello'";
        scanner(&MachineConfig::parse(text, Path::new("x.toml"), &sets, host).unwrap().dedup)
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        assert_eq!(config(&[]), DedupConfig::default());
    }

    #[test]
    fn a_config_reaches_the_library() {
        let policy = DedupPolicy { max_merged: 7, splitting: Splitting::Allowed };
        let expected = DedupConfig { policy, scan_rate: None };
        assert_eq!(config(&["max_merged=7", "split_huge=true", "scan_rate=unlimited"]), expected);
    }
}
