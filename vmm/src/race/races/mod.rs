//! The races, a file each.

pub(super) mod continue_vs_zap;
pub(super) mod dedup_vs_pin;
pub(super) mod huge_map_over_missing;
pub(super) mod huge_vs_small_fault;
pub(super) mod lock_vs_detach;
pub(super) mod pin_vs_collapse;
pub(super) mod pin_vs_unexclusive;
pub(super) mod place_vs_retract;
