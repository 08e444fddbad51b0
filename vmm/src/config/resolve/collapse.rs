//! `[collapse]`

use crate::config::ConfigError;
use crate::config::machine::{Collapse, Rate};
use crate::config::raw::{Raw, Value};
use crate::config::schema::{self, Key};

use super::read::{boolean, must_be, rate, setting};

/// The defaults are those of `guest_mm`'s collapser, and that there is none.
pub(super) fn collapse(raw: &Raw) -> Result<Collapse, ConfigError> {
    let switch =
        |key: &'static Key, default| setting(raw, key, default, |written| boolean(written, key));
    let rate = |key: &'static Key, default| {
        let zero = match key.name {
            "copy_budget" => "nothing is copied with collapse.copying = false",
            _ => "nothing is looked at with collapse.background = false",
        };
        setting(raw, key, Rate::PerSecond(default), |written| rate(written, key, zero))
    };
    Ok(Collapse {
        background: switch(&schema::BACKGROUND, false)?,
        max_holes: setting(raw, &schema::MAX_HOLES, 0, |written| match written.value {
            Value::Integer(holes @ 0..=511) => Ok(holes as u32),
            Value::Integer(512) => Err(format!(
                "{}: a block of which nothing is there stays untouched",
                must_be(&schema::MAX_HOLES)
            )),
            _ => Err(must_be(&schema::MAX_HOLES)),
        })?,
        copying: switch(&schema::COPYING, true)?,
        scan_rate: rate(&schema::SCAN_RATE, 1024)?,
        copy_budget: rate(&schema::COPY_BUDGET, 64)?,
    })
}
