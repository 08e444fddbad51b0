//! The races, a file each.

pub(super) mod continue_vs_zap;
pub(super) mod lock_vs_detach;
pub(super) mod pin_vs_collapse;
