//! `[balloon.NAME]`

use crate::config::devices::Balloon;
use crate::config::machine::Memory;
use crate::config::raw::Raw;
use crate::config::schema;
use crate::config::{Bytes, ConfigError};

use super::super::PAGE;
use super::super::read::{setting, size};
use super::read::{integer, switch};

pub(super) fn balloon(raw: &Raw, memory: &Memory) -> Result<Balloon, ConfigError> {
    let target = &schema::BALLOON_TARGET;
    let statistics = &schema::BALLOON_STATISTICS;
    Ok(Balloon {
        target: setting(raw, target, Bytes::new(0), |written| {
            let target = size(written, target)?;
            let ram = memory.size.value;
            if target > ram {
                return Err(format!("it must be at most memory.size, {ram}"));
            }
            if !target.is_multiple_of(PAGE) {
                // It fits: RAM is a multiple too, and not smaller.
                let up = target.checked_round_up(PAGE).unwrap_or(ram);
                return Err(format!("it must be a multiple of {PAGE} (try {:?})", up.short()));
            }
            Ok(target)
        })?,
        deflate_on_oom: switch(raw, &schema::BALLOON_DEFLATE_ON_OOM, true)?,
        reporting: switch(raw, &schema::BALLOON_REPORTING, true)?,
        statistics: setting(raw, statistics, 1, |w| integer(w, statistics, (0, 3600)))?,
    })
}
