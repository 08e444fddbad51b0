//! A whole machine, and its form as bytes.
//!
//! Two lines of JSON: a header with the version, the length of the second line and its checksum, and the state.

use devices::cmos::CmosState;
use devices::serial::SerialState;
use devices::virtio::state::DeviceState;
use serde::{Deserialize, Serialize};

use super::sealed::{seal, unseal};
use super::{Fingerprint, VcpuState, VmState};

/// The form of [`MachineState`] that is written and read.
pub const VERSION: u32 = 1;
/// What the header calls it.
const KIND: &str = "state";

/// A machine at rest, but for its memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// What it looks like to its guest.
    pub fingerprint: Fingerprint,
    /// What KVM keeps of the VM.
    pub vm: VmState,
    /// The vCPUs, in order.
    pub vcpus: Vec<VcpuState>,
    /// The devices on the board.
    pub platform: Platform,
    /// The virtio devices, in their order on the bus.
    pub devices: Vec<SavedDevice>,
}

/// The devices on the board that keep something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// The serial port.
    pub serial: SerialState,
    /// The real-time clock and its RAM.
    pub cmos: CmosState,
}

/// A virtio device at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedDevice {
    /// Its name.
    pub name: String,
    /// Its state, with a version of its own.
    pub state: DeviceState,
}

/// Why bytes are no state, or not one for this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// They do not begin like one.
    #[error("it is nothing that this program wrote")]
    Foreign,
    /// Written by another version of this program.
    #[error(
        "it has version {0}, and this program reads version {VERSION}: restore it with the program that saved it"
    )]
    Version(u32),
    /// Not the bytes that were written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The machine looks otherwise to its guest.
    #[error("the state does not fit this machine: {0}")]
    Misfit(String),
}

impl MachineState {
    /// It as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = serde_json::to_string(self).expect("keys are strings and no value can fail");
        seal(KIND, VERSION, &body)
    }

    /// What `bytes`, of [`MachineState::to_bytes`], say.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<MachineState, StateError> {
        let body = unseal(KIND, VERSION, bytes)?;
        let damaged = |error: serde_json::Error| StateError::Damaged(error.to_string());
        let state: MachineState = serde_json::from_slice(body).map_err(damaged)?;
        state.check()?;
        Ok(state)
    }

    /// Whether a machine that looks like `here` can become this.
    ///
    /// # Errors
    /// [`StateError::Misfit`], which names the difference.
    pub fn fits(&self, here: &Fingerprint) -> Result<(), StateError> {
        self.fingerprint.difference(here).map_or(Ok(()), |what| Err(StateError::Misfit(what)))
    }

    /// Whether it has as many of each as it says.
    fn check(&self) -> Result<(), StateError> {
        let Fingerprint { vcpus, devices, .. } = &self.fingerprint;
        if self.vcpus.len() != usize::from(*vcpus) {
            return Err(StateError::Damaged("it has not every vCPU".into()));
        }
        let names = self.devices.iter().map(|device| &device.name);
        if !names.eq(devices.iter().map(|device| &device.name)) {
            return Err(StateError::Damaged("it has not every device".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
