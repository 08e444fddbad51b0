//! `[net.NAME]`

use std::io;
use std::path::PathBuf;

use devices::dma::Pinning;
use devices::virtio::net::host::{Tap, TapError};
use devices::virtio::net::{Config, Net};

use crate::config;
use crate::machine::MachineError;

use super::Boxed;

/// The network device that `net` describes.
pub(super) fn model(name: &str, net: &config::Net, dma: &Pinning) -> Result<Boxed, MachineError> {
    let failed = |source| MachineError::Device {
        key: format!("net.{name}.tap"),
        path: PathBuf::from(&net.tap.value),
        source,
    };
    let queues = net.queues.value.into();
    let tap = Tap::open(&net.tap.value, queues);
    let tap = tap.map_err(|error: TapError| failed(io::Error::other(error)))?;
    let config = Config {
        mac: net.mac.value.octets(),
        queues,
        queue_size: net.queue_size.value,
        offloads: net.offloads.value,
    };
    Ok(Box::new(Net::new(dma, config, Box::new(tap)).map_err(failed)?))
}
