//! `[rng.NAME]`

use devices::dma::Pinning;
use devices::virtio::rate::{Limit, Limiter};
use devices::virtio::rng::Rng;
use devices::virtio::rng::host::Source;

use crate::config;
use crate::machine::MachineError;

use super::Boxed;

/// The entropy device that `rng` describes.
pub(super) fn model(name: &str, rng: &config::Rng, dma: &Pinning) -> Result<Boxed, MachineError> {
    let path = rng.source.value.to_path_buf();
    let failed = |source| MachineError::Device {
        key: format!("rng.{name}.source"),
        path: path.clone(),
        source,
    };
    let source = Source::open(&path).map_err(failed)?;
    let limit = rng.rate_bytes.value.limit().map(|bytes| Limit { per_second: bytes.get() });
    Ok(Box::new(Rng::new(dma, source, Limiter::new(limit, None)).map_err(failed)?))
}
