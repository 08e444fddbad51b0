//! A machine that runs, as those see it who let it rest, save it, or send it elsewhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::cmos::Cmos;
use devices::dma::Pinning;
use devices::serial::Serial;
use devices::virtio::device::{Device, Restless};
use guest_mm::Guest;
use kvm_ioctls::VcpuFd;

use crate::kvm::Vm;
use crate::state::{self, Fingerprint, MachineState, Platform, SaveError, SavedDevice};
use crate::vcpu::{Ending, Stage, Threads};

use super::Machine;
use super::memory::ServedRam;
use super::virtio::Claim;

/// How long vCPUs, and then each device, may take to come to rest. Within a client's patience.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What there is to reach of it. Let go of it before the machine's memory is taken down, which waits for that.
#[derive(Clone, Debug)]
pub struct Live {
    stage: Arc<Stage>,
    threads: Arc<Threads>,
    devices: Vec<Arc<Device<Pinning>>>,
    serial: Arc<Mutex<Serial>>,
    cmos: Arc<Mutex<Cmos>>,
    vm: Arc<Vm>,
    ram: Arc<ServedRam>,
    fingerprint: Arc<Fingerprint>,
    claims: Arc<Vec<Claim>>,
}

/// Why it does not rest, or is not saved.
#[derive(Debug, thiserror::Error)]
pub enum Unrest {
    /// A vCPU.
    #[error("a vCPU did not leave the guest within {PATIENCE:?}; the machine goes on")]
    Vcpu,
    /// A vCPU or a device is in the middle of an access to memory that is not there.
    #[error(
        "it waits for one of {0} pages that have not come from its source: let them come (\"slat send --recover\" if the \
         connection is gone), and ask again; the machine goes on"
    )]
    Waits(u64),
    /// It has ended.
    #[error("the machine has ended")]
    Ended,
    /// A device.
    #[error("{0}; the machine goes on")]
    Device(#[from] Restless),
    /// Its state cannot be had.
    #[error("the machine cannot be saved: {0}")]
    Save(#[from] SaveError),
}

impl Machine {
    /// The machine as those see it who let it rest or save it, from before its first instruction to its end.
    pub fn live(&self) -> Live {
        Live {
            stage: Arc::clone(&self.stage),
            threads: Arc::clone(&self.threads),
            devices: self.virtio.devices().to_vec(),
            serial: Arc::clone(&self.serial),
            cmos: Arc::clone(&self.cmos),
            vm: Arc::clone(&self.vm),
            ram: Arc::clone(&self.ram),
            fingerprint: Arc::clone(&self.fingerprint),
            claims: Arc::clone(self.virtio.claims()),
        }
    }
}

impl Live {
    /// Its memory.
    pub fn guest(&self) -> &Guest {
        self.ram.guest()
    }

    /// The same with what the machine has beside the service's face.
    pub(super) fn ram(&self) -> &Arc<ServedRam> {
        &self.ram
    }

    /// Its memory, with the VM that has slots of it.
    pub(super) fn memory(&self) -> (Arc<Vm>, Arc<ServedRam>) {
        (Arc::clone(&self.vm), Arc::clone(&self.ram))
    }

    /// What it looks like to its guest.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Why it ended, if it has.
    pub fn ending(&self) -> Option<&Ending> {
        self.stage.ending()
    }

    /// Ends it.
    pub fn end(&self, ending: Ending) {
        self.stage.end(ending);
    }

    /// Brings it to rest: no vCPU in the guest, no request of a device under way, nothing pinned. vCPUs first: they make devices
    /// busy. It may rest already.
    ///
    /// # Errors
    /// [`Unrest`]: the machine goes on as if nothing had been asked.
    pub fn pause(&self) -> Result<(), Unrest> {
        let gate = self.stage.gate();
        if !gate.shut(Instant::now() + PATIENCE, || self.threads.kick()) {
            let ended = self.ending().is_some();
            return Err(if ended { Unrest::Ended } else { self.restless(Unrest::Vcpu) });
        }
        let deadline = Instant::now() + PATIENCE;
        let rests = |device: &Arc<Device<Pinning>>| device.quiesce(deadline);
        if let Err(restless) = self.devices.iter().try_for_each(rests) {
            self.resume();
            return Err(self.restless(restless.into()));
        }
        Ok(())
    }

    /// Pages that have not come from the guest's source yet.
    pub fn missing(&self) -> u64 {
        self.guest().missing().iter().map(|run| run.frames()).sum()
    }

    /// Why it does not rest, where `unrest` is what is seen of that.
    fn restless(&self, unrest: Unrest) -> Unrest {
        match self.missing() {
            0 => unrest,
            pages => Unrest::Waits(pages),
        }
    }

    /// Whether it rests, or is about to.
    pub fn is_paused(&self) -> bool {
        self.stage.gate().is_shut()
    }

    /// Makes its disks its own, if they are not. Another machine may be about to let them go.
    ///
    /// # Errors
    /// Another machine has one of them: a sentence that says which.
    pub fn claim_disks(&self) -> Result<(), String> {
        self.claims.iter().try_for_each(|claim| {
            claim.make().map_err(|error| format!("the disk {}: {error}", claim.path().display()))
        })
    }

    /// Lets another machine have its disks, at rest.
    pub fn let_disks_go(&self) {
        self.claims.iter().for_each(Claim::drop_lock);
    }

    /// Lets it go on. Devices first: vCPUs wait for them. A guest that asks is told that it was stopped.
    pub fn resume(&self) {
        self.devices.iter().for_each(|device| device.resume());
        let tell = |_, vcpu: &VcpuFd| {
            // Refused by a vCPU that does not use the clock through which it is told.
            let _ = vcpu.kvmclock_ctrl();
        };
        self.stage.gate().each(Instant::now() + PATIENCE, Arc::new(tell));
        self.stage.gate().open();
    }

    /// Its virtio devices.
    pub(super) fn virtio(&self) -> &[Arc<Device<Pinning>>] {
        &self.devices
    }

    /// What its virtio devices are, at rest.
    pub fn devices(&self) -> Vec<SavedDevice> {
        let saved = |device: &Arc<Device<Pinning>>| SavedDevice {
            name: device.name().to_owned(),
            state: device.save(),
        };
        self.devices.iter().map(saved).collect()
    }

    /// All that it is beside its memory, at rest: after [`Live::pause`].
    ///
    /// # Errors
    /// [`Unrest::Save`]; it rests on.
    pub fn state(&self) -> Result<MachineState, Unrest> {
        let Fingerprint { vcpus, irqchip, .. } = *self.fingerprint;
        let deadline = Instant::now() + PATIENCE;
        let (vm, vcpus) = state::save(&self.vm, self.stage.gate(), vcpus, irqchip, deadline)?;
        Ok(MachineState {
            fingerprint: Fingerprint::clone(&self.fingerprint),
            vm,
            vcpus,
            platform: Platform { serial: lock(&self.serial).save(), cmos: lock(&self.cmos).save() },
            devices: self.devices(),
        })
    }
}

/// A vCPU that panicked with a device has ended the run; the device is looked at all the same.
pub(super) fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
