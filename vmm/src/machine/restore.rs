//! A machine that begins as a state, instead of by booting.

use std::sync::Arc;
use std::time::Instant;

use crate::config::MachineConfig;
use crate::control::Listener;
use crate::kvm;
use crate::state::{self, MachineState};

use super::console::Speech;
use super::live::lock;
use super::memory::OnMissing;
use super::{Commons, Machine, MachineError};

/// Where the memory of a machine comes from that is not booted.
#[derive(Default)]
pub struct Filling {
    /// Called for a page that is marked missing, on the thread that met it: asks for it. Who waits for the page goes on when it
    /// is placed. Without this, touching such a page ends the machine.
    pub on_missing: Option<OnMissing>,
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let asks = self.on_missing.is_some();
        f.debug_struct("Filling").field("on_missing", &asks).finish()
    }
}

impl Machine {
    /// The machine that `config` describes with nothing in it: no boot image, memory as the config has it before that. It is
    /// filled through [`Live::guest`](super::Live::guest), and becomes what it is to be by [`Machine::restore`].
    ///
    /// # Errors
    /// As [`Machine::new`].
    pub fn vacant(
        config: &MachineConfig,
        filling: Filling,
        started: Instant,
    ) -> Result<Machine, MachineError> {
        let control = config.control.socket.as_ref();
        let control = control.map(|path| Listener::bind(&path.value)).transpose()?;
        let kvm = kvm::open()?;
        let commons = Arc::new(Commons::new(&config.memory)?);
        let Filling { on_missing } = filling;
        let speech = Speech::AsConfigured;
        let machine = Machine::empty(&kvm, &commons, config, speech, on_missing, started)?;
        Ok(Machine { control, ..machine })
    }

    /// Becomes what `state` says, and goes on from there once it runs. It has not run.
    ///
    /// # Errors
    /// [`MachineError`]: the state is of another machine, or this host cannot have it. This one is to be thrown away.
    pub fn restore(&mut self, state: &MachineState) -> Result<(), MachineError> {
        state.fits(&self.fingerprint)?;
        let misfit = MachineError::Platform;
        lock(&self.cmos).restore(&state.platform.cmos).map_err(misfit)?;
        let vcpus: Vec<_> = self.vcpus.iter().map(|vcpu| &vcpu.fd).collect();
        state::restore(state, &self.vm, &vcpus, self.has_irqchip)?;
        // After the controllers, to which they raise again what was pending.
        for (device, saved) in self.virtio.devices().iter().zip(&state.devices) {
            device.restore(&saved.state)?;
        }
        lock(&self.serial).restore(&state.platform.serial).map_err(misfit)
    }

    /// The machine that `config` describes as `state` says.
    ///
    /// # Errors
    /// As [`Machine::vacant`] and [`Machine::restore`].
    pub fn restored(
        config: &MachineConfig,
        state: &MachineState,
        filling: Filling,
        started: Instant,
    ) -> Result<Machine, MachineError> {
        let mut machine = Machine::vacant(config, filling, started)?;
        machine.restore(state)?;
        Ok(machine)
    }
}

#[cfg(test)]
mod tests;
