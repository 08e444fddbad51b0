//! `[balloon.NAME]`

use std::time::Duration;

use devices::dma::Reclaiming;
use devices::virtio::balloon::wire::PAGE;
use devices::virtio::balloon::{Balloon, Shape};

use crate::config;
use crate::machine::MachineError;
use crate::machine::memory::ServedRam;

use super::Boxed;

/// The balloon that `balloon` describes, on the memory `ram`.
pub(super) fn model(balloon: &config::Balloon, ram: &ServedRam) -> Result<Boxed, MachineError> {
    let seconds = balloon.statistics.value;
    let shape = Shape {
        // A driver counts pages in 32 bits: of more than 16 TiB it cannot be asked for all.
        target: u32::try_from(balloon.target.value.get() / PAGE).unwrap_or(u32::MAX),
        deflate_on_oom: balloon.deflate_on_oom.value,
        reporting: balloon.reporting.value,
        statistics: (seconds > 0).then(|| Duration::from_secs(seconds.into())),
    };
    let host = Box::new(Reclaiming::new(ram.guest().reclaimer()));
    let model = Balloon::new(shape, host)
        .map_err(|source| MachineError::System { what: "a timer for a balloon", source })?;
    Ok(Box::new(model))
}
