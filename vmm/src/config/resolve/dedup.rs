//! `[dedup]`

use crate::config::ConfigError;
use crate::config::machine::{Backing, Dedup, Memory, Rate};
use crate::config::raw::{Raw, Value};
use crate::config::schema::{self, Key};

use super::read::{boolean, must_be, rate, setting};

/// The defaults are those of `guest_mm`'s scanner, and that there is none.
pub(super) fn dedup(raw: &Raw, memory: &Memory) -> Result<Dedup, ConfigError> {
    let switch = |key: &'static Key| setting(raw, key, false, |written| boolean(written, key));
    let scan_rate = &schema::DEDUP_SCAN_RATE;
    let zero = "nothing is looked at with dedup.background = false";
    Ok(Dedup {
        background: setting(raw, &schema::DEDUP_BACKGROUND, false, |written| {
            match boolean(written, &schema::DEDUP_BACKGROUND)? {
                true if memory.backing.value == Backing::Hugetlb => {
                    Err("memory.backing is hugetlb, which has no 4 KiB pages to share".into())
                }
                background => Ok(background),
            }
        })?,
        scan_rate: setting(raw, scan_rate, Rate::PerSecond(16384), |w| rate(w, scan_rate, zero))?,
        max_merged: setting(raw, &schema::MAX_MERGED, 16384, |written| match written.value {
            Value::Integer(pages) => u32::try_from(pages).map_err(|_| must_be(&schema::MAX_MERGED)),
            _ => Err(must_be(&schema::MAX_MERGED)),
        })?,
        split_huge: switch(&schema::SPLIT_HUGE)?,
    })
}
