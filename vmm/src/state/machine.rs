//! A whole machine, and its form as bytes.
//!
//! Two lines of JSON: a header with the version, the length of the second line and its checksum, and the state.

use devices::cmos::CmosState;
use devices::serial::SerialState;
use devices::virtio::state::DeviceState;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::{Fingerprint, VcpuState, VmState};

/// The form of [`MachineState`] that is written and read.
pub const VERSION: u32 = 1;
/// Bytes of a header at most.
const LONGEST_HEADER: usize = 256;

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
    #[error("it is no state of a machine")]
    Foreign,
    /// Written by another version of this program.
    #[error(
        "the state has version {0}, and this program reads version {VERSION}: restore it with the program that saved it"
    )]
    Version(u32),
    /// Not the bytes that were written.
    #[error("the state is damaged: {0}")]
    Damaged(String),
    /// The machine looks otherwise to its guest.
    #[error("the state does not fit this machine: {0}")]
    Misfit(String),
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    slat_state: u32,
    bytes: usize,
    xxh3: String,
}

impl MachineState {
    /// It as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = serde_json::to_string(self).expect("keys are strings and no value can fail");
        let header = Header { slat_state: VERSION, bytes: body.len(), xxh3: sum(body.as_bytes()) };
        let header = serde_json::to_string(&header).expect("as above");
        format!("{header}\n{body}\n").into_bytes()
    }

    /// What `bytes`, of [`MachineState::to_bytes`], say.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<MachineState, StateError> {
        let head = &bytes[..bytes.len().min(LONGEST_HEADER)];
        let end = head.iter().position(|&byte| byte == b'\n').ok_or(StateError::Foreign)?;
        let header: Header =
            serde_json::from_slice(&head[..end]).map_err(|_| StateError::Foreign)?;
        if header.slat_state != VERSION {
            return Err(StateError::Version(header.slat_state));
        }
        let damaged = |what: String| StateError::Damaged(what);
        let body = bytes[end + 1..].strip_suffix(b"\n").unwrap_or_default();
        if body.len() != header.bytes {
            let (has, needs) = (body.len(), header.bytes);
            return Err(damaged(format!("{has} bytes are there, and {needs} were written")));
        }
        if sum(body) != header.xxh3 {
            return Err(damaged("its checksum is another".into()));
        }
        let state: MachineState =
            serde_json::from_slice(body).map_err(|error| damaged(error.to_string()))?;
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

fn sum(bytes: &[u8]) -> String {
    format!("{:016x}", XxHash3_64::oneshot(bytes))
}

#[cfg(test)]
mod tests;
