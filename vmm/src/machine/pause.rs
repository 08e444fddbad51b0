//! A machine at rest: its vCPUs out of the guest, its devices without a request under way and with nothing pinned.

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::dma::Pinning;
use devices::virtio::device::{Device, Restless};

use crate::control::DeviceAtRest;
use crate::vcpu::{Stage, Threads};

/// How long vCPUs, and then each device, may take to come to rest. Within a client's patience.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What has to rest.
#[derive(Clone, Debug)]
pub(super) struct Restful {
    pub(super) stage: Arc<Stage>,
    pub(super) threads: Arc<Threads>,
    pub(super) devices: Vec<Arc<Device<Pinning>>>,
}

/// Why it does not.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unrest {
    /// A vCPU.
    #[error("a vCPU did not leave the guest within {PATIENCE:?}; the machine goes on")]
    Vcpu,
    /// A device.
    #[error("{0}; the machine goes on")]
    Device(#[from] Restless),
}

impl Restful {
    /// Brings the machine to rest. vCPUs first: they make devices busy. The state of each device, with its name.
    ///
    /// # Errors
    /// [`Unrest`]: the machine goes on as if nothing had been asked.
    pub(super) fn pause(&self) -> Result<Vec<DeviceAtRest>, Unrest> {
        let gate = self.stage.gate();
        if !gate.shut(Instant::now() + PATIENCE, || self.threads.kick()) {
            return Err(Unrest::Vcpu);
        }
        let deadline = Instant::now() + PATIENCE;
        let rests = |device: &Arc<Device<Pinning>>| device.quiesce(deadline);
        if let Err(restless) = self.devices.iter().try_for_each(rests) {
            self.resume();
            return Err(restless.into());
        }
        let told = |device: &Arc<Device<Pinning>>| {
            let state = serde_json::to_value(device.save()).expect("states are plain data");
            DeviceAtRest { name: device.name().to_owned(), state }
        };
        Ok(self.devices.iter().map(told).collect())
    }

    /// Lets it go on. Devices first: vCPUs wait for them.
    pub(super) fn resume(&self) {
        self.devices.iter().for_each(|device| device.resume());
        self.stage.gate().open();
    }
}
