//! What is answered about a machine that rests.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

/// A machine at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Its devices, in the order of its config.
    pub devices: Vec<DeviceAtRest>,
}

/// A device with no request under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAtRest {
    /// Its name.
    pub name: String,
    /// What it would be restored from, with its version.
    pub state: serde_json::Value,
}

/// A machine that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {}

impl Paused {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "paused: no vCPU is in the guest, and no memory is pinned")?;
        for device in &self.devices {
            let bytes = device.state.to_string().len();
            writeln!(
                out,
                "{:>24}  {bytes} bytes of state",
                super::collapse::one_line(&device.name)
            )?;
        }
        Ok(())
    }
}

impl Resumed {
    pub(super) fn write(self, out: &mut String) -> fmt::Result {
        writeln!(out, "runs")
    }
}
