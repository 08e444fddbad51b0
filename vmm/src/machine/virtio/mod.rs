//! The virtio devices of a machine: a page of registers, an interrupt and queues' kicks for each, and the threads that serve
//! them.
//!
//! ```text
//!   address.rs   where each is on the bus, and what the guest is told of that
//!   disk.rs ...  what a family's config makes of it
//! ```

mod address;
mod balloon;
mod claim;
mod disk;
mod hvc;
mod net;
mod pmem;
mod rng;
mod vsock;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use devices::bus::{MmioBus, MmioRange};
use devices::dma::Pinning;
use devices::virtio::console::Console;
use devices::virtio::device::{Device, DeviceReport};
use devices::virtio::interrupt::Interrupt;
use devices::virtio::mmio::{Mmio, QUEUE_NOTIFY, SIZE};
use devices::virtio::model::Model;
use devices::virtio::thread::Threads;

use crate::config::{self, DeviceKind, MachineConfig, Origin};
use crate::control::SocketFile;
use crate::kvm::Vm;

use super::memory::ServedRam;
use super::{MachineError, event};

use address::{address, interrupt};
pub(super) use address::{in_acpi_tables, on_command_line};
pub(super) use claim::Claim;
pub(super) use pmem::images;

/// A model, and what the hypervisor's side needs of it.
type Boxed = Box<dyn Model<Pinning>>;

/// The devices, in the order of the config.
#[derive(Debug)]
pub(super) struct Virtio {
    devices: Vec<Arc<Device<Pinning>>>,
    /// Threads that serve them.
    threads: usize,
    extras: Extras,
    claims: Arc<Vec<Claim>>,
}

/// What devices leave to the machine.
#[derive(Debug, Default)]
struct Extras {
    /// Removed at the end.
    files: Vec<SocketFile>,
    /// Where what is typed goes, if a console leads to standard input.
    keys: Option<OwnedFd>,
    /// The device whose size is that of the terminal.
    screen: Option<usize>,
    /// Whose the disks are, until all devices are there.
    claims: Vec<Claim>,
}

/// Devices that are served. What is under way ends before this is gone.
#[derive(Debug)]
pub(super) struct Served {
    threads: Threads,
    devices: Vec<Arc<Device<Pinning>>>,
    extras: Extras,
    claims: Arc<Vec<Claim>>,
}

impl Virtio {
    /// The devices that `config` describes, on the memory `ram` and connected to `vm`, each with its page on `bus`. Unless
    /// `claims_now`, its disks are another machine's as yet.
    ///
    /// # Errors
    /// What a device stands on cannot be had: the key is named.
    pub(super) fn new(
        config: &MachineConfig,
        ram: &ServedRam,
        vm: &Vm,
        bus: &mut MmioBus,
        claims_now: bool,
    ) -> Result<Virtio, MachineError> {
        let has_irqchip = config.machine.irqchip.value == config::Irqchip::Kernel;
        let (mut devices, mut extras) = (Vec::new(), Extras::default());
        for (index, device) in (0..).zip(&config.devices) {
            let dma = Pinning::new(ram.guest().pinner());
            let model = extras.model(devices.len(), device, ram, &dma, claims_now)?;
            let line = has_irqchip.then(|| event("an interrupt")).transpose()?;
            if let Some(line) = &line {
                vm.connect_irq(line, interrupt(index))?;
            }
            let name = format!("{}.{}", device.kind.family(), device.name);
            let device = Device::new(name.clone(), dma, model, Interrupt::new(line))
                .map_err(|source| MachineError::System { what: "an event for a device", source })?;
            let device = Arc::new(device);
            let page = address(index);
            for (queue, kick) in (0..).zip(device.kicks()) {
                vm.connect_kick(kick, page + QUEUE_NOTIFY, queue)?;
            }
            let page = MmioRange::new(page, SIZE).map_err(devices::bus::BusError::from)?;
            bus.insert(page, name, Arc::new(Mutex::new(Mmio::new(Arc::clone(&device)))))?;
            devices.push(device);
        }
        let threads = config.machine.device_threads.value.into();
        let claims = Arc::new(std::mem::take(&mut extras.claims));
        Ok(Virtio { devices, threads, extras, claims })
    }

    /// Serves them from now on.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn serve(self) -> Result<Served, MachineError> {
        let threads = Threads::start(&self.devices, self.threads)
            .map_err(|source| MachineError::System { what: "starting a device thread", source })?;
        let Virtio { devices, extras, claims, .. } = self;
        Ok(Served { threads, devices, extras, claims })
    }
}

impl Served {
    /// The devices.
    pub(super) fn devices(&self) -> &[Arc<Device<Pinning>>] {
        &self.devices
    }

    /// Whose their disks are.
    pub(super) fn claims(&self) -> &Arc<Vec<Claim>> {
        &self.claims
    }

    /// Where what is typed goes, if a console takes it.
    pub(super) fn keys(&self) -> Option<&OwnedFd> {
        self.extras.keys.as_ref()
    }

    /// The terminal has another size now.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        let Some(screen) = self.extras.screen else { return };
        let resize = |console: &mut Console<Pinning>| ((), console.resize(columns, rows));
        let _ = self.devices[screen].with(resize);
    }

    /// Ends what is under way, and tells what was done. No vCPU runs.
    pub(super) fn end(self) -> Vec<DeviceReport> {
        let Served { threads, devices, extras: _, claims: _ } = self;
        drop(threads);
        let end = |device: &Arc<Device<Pinning>>| {
            let report = device.report();
            device.retire();
            report
        };
        devices.iter().map(end).collect()
    }
}

impl Extras {
    /// The model that device `index`, `device`, asks for.
    fn model(
        &mut self,
        index: usize,
        device: &config::Device,
        ram: &ServedRam,
        dma: &Pinning,
        claims_now: bool,
    ) -> Result<Boxed, MachineError> {
        let name = &device.name;
        match &device.kind {
            DeviceKind::Disk(disk) => {
                let (model, claim) = disk::model(name, disk, dma, claims_now)?;
                self.claims.push(claim);
                Ok(model)
            }
            DeviceKind::Net(net) => net::model(name, net, dma),
            DeviceKind::Rng(rng) => rng::model(name, rng, dma),
            DeviceKind::Hvc(hvc) => {
                let made = hvc::model(name, hvc, dma)?;
                self.files.extend(made.file);
                if made.keys.is_some() {
                    self.keys = made.keys;
                    // A size that was written down stays.
                    let follows = [hvc.columns.origin, hvc.rows.origin] == [Origin::Default; 2];
                    self.screen = follows.then_some(index);
                }
                Ok(made.model)
            }
            DeviceKind::Vsock(vsock) => {
                let (model, file) = vsock::model(name, vsock, dma)?;
                self.files.push(file);
                Ok(model)
            }
            DeviceKind::Balloon(balloon) => balloon::model(balloon, ram),
            DeviceKind::Pmem(pmem) => Ok(pmem::model(pmem)),
        }
    }
}
