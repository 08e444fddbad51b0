//! A machine that begins as a state, instead of by booting.

mod ahead;
mod lazy;

use std::sync::Arc;
use std::time::Instant;

use guest_mm::addr::Gpa;
use guest_mm::prot::Access;

use crate::config::MachineConfig;
use crate::control::Listener;
use crate::kvm;
use crate::snapshot::Snapshot;
use crate::state::{self, MachineState};

use super::console::Speech;
use super::live::lock;
use super::memory::{OnMissing, ServedRam};
use super::migrate::Arriving;
use super::{Commons, Machine, MachineError};

pub use ahead::Ahead;
use ahead::Plan;
pub use lazy::{Learnt, Restores};

/// Where the memory of a machine comes from that is not booted.
#[derive(Default)]
pub struct Filling {
    /// Called for a page that is marked missing, on the thread that met it: asks for it. Who waits for the page goes on when it
    /// is placed. Without this, touching such a page ends the machine.
    pub on_missing: Option<OnMissing>,
    /// What is made ready from the moment on at which there is memory.
    ahead: Option<Plan>,
    /// The guest that comes from another host.
    arriving: Option<Arc<Arriving>>,
}

impl Filling {
    /// Memory that comes with a guest from another host, asked for through `on_missing`.
    pub(super) fn of_guest(arriving: &Arc<Arriving>, on_missing: OnMissing) -> Filling {
        let arriving = Some(Arc::clone(arriving));
        Filling { on_missing: Some(on_missing), arriving, ahead: None }
    }

    /// Begins to make ready what is to be.
    pub(super) fn begin(self, ram: &Arc<ServedRam>) -> Option<Ahead> {
        self.ahead.and_then(|plan| plan.start(ram))
    }
}

impl std::fmt::Debug for Filling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let asks = self.on_missing.is_some();
        f.debug_struct("Filling").field("on_missing", &asks).field("ahead", &self.ahead).finish()
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
        mut filling: Filling,
        started: Instant,
    ) -> Result<Machine, MachineError> {
        let control = config.control.socket.as_ref();
        let control = control.map(|path| Listener::bind(&path.value)).transpose()?;
        let kvm = kvm::open()?;
        let commons = Arc::new(Commons::new(&config.memory)?);
        let arriving = filling.arriving.take();
        let speech = Speech::AsConfigured;
        let machine = Machine::empty(&kvm, &commons, config, speech, filling, started)?;
        Ok(Machine { control, arriving, ..machine })
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

    /// The machine that `config` describes as `snapshot` has it, all of its memory there.
    ///
    /// # Errors
    /// As [`Machine::restored`]; and what of the snapshot is not as it was written.
    pub fn from_snapshot(
        config: &MachineConfig,
        snapshot: &Snapshot,
        started: Instant,
    ) -> Result<Machine, MachineError> {
        let mut config = config.clone();
        config.lay_over(None);
        let mut machine = Machine::vacant(&config, Filling::default(), started)?;
        snapshot.state().fits(&machine.fingerprint)?;
        machine.clear_device_memory(snapshot)?;
        snapshot.for_each_run(|gpa, bytes| machine.ram.put(gpa, bytes))?;
        machine.restore(snapshot.state())?;
        Ok(machine)
    }

    /// What the guest had zeroes in, and the files of its devices have not.
    fn clear_device_memory(&self, snapshot: &Snapshot) -> Result<(), MachineError> {
        let private = self.fingerprint.memory.iter().filter(|memory| memory.private);
        for memory in private {
            for gpa in snapshot.zero_pages(memory.at.start)? {
                let mut page = [0; 4096];
                let guest = self.ram.guest();
                let there = guest.fault(Gpa::new(gpa), Access::Read).is_ok()
                    && guest.read(Gpa::new(gpa), &mut page).is_ok();
                if there && page.iter().any(|&byte| byte != 0) {
                    self.ram.put(gpa, &[0; 4096])?;
                }
            }
        }
        Ok(())
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
