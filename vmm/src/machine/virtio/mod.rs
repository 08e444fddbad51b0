//! The virtio devices of a machine: a page of registers, an interrupt and queues' kicks for each, and the threads that serve
//! them.
//!
//! ```text
//!   address.rs   where each is on the bus, and what the guest is told of that
//!   disk.rs ...  what a family's config makes of it
//! ```

mod address;
mod balloon;
mod disk;
mod pmem;

use std::sync::{Arc, Mutex};

use devices::bus::{MmioBus, MmioRange};
use devices::dma::Pinning;
use devices::virtio::device::{Device, DeviceReport};
use devices::virtio::interrupt::Interrupt;
use devices::virtio::mmio::{Mmio, QUEUE_NOTIFY, SIZE};
use devices::virtio::model::Model;
use devices::virtio::thread::Threads;

use crate::config::{self, DeviceKind, MachineConfig};
use crate::kvm::Vm;

use super::memory::ServedRam;
use super::{MachineError, event};

pub(super) use address::on_command_line;
use address::{address, interrupt};
pub(super) use pmem::images;

/// A model, and what the hypervisor's side needs of it.
type Boxed = Box<dyn Model<Pinning>>;

/// The devices, in the order of the config.
#[derive(Debug)]
pub(super) struct Virtio {
    devices: Vec<Arc<Device<Pinning>>>,
    /// Threads that serve them.
    threads: usize,
}

/// Devices that are served. What is under way ends before this is gone.
#[derive(Debug)]
pub(super) struct Served {
    threads: Threads,
    devices: Vec<Arc<Device<Pinning>>>,
}

impl Virtio {
    /// The devices that `config` describes, on the memory `ram` and connected to `vm`, each with its page on `bus`.
    ///
    /// # Errors
    /// What a device stands on cannot be had: the key is named.
    pub(super) fn new(
        config: &MachineConfig,
        ram: &ServedRam,
        vm: &Vm,
        bus: &mut MmioBus,
    ) -> Result<Virtio, MachineError> {
        let has_irqchip = config.machine.irqchip.value == config::Irqchip::Kernel;
        let mut devices = Vec::new();
        for (index, device) in (0..).zip(&config.devices) {
            let dma = Pinning::new(ram.guest().pinner());
            let model = model(device, ram, &dma)?;
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
        Ok(Virtio { devices, threads: config.machine.device_threads.value.into() })
    }

    /// Serves them from now on.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn serve(self) -> Result<Served, MachineError> {
        let threads = Threads::start(&self.devices, self.threads)
            .map_err(|source| MachineError::System { what: "starting a device thread", source })?;
        Ok(Served { threads, devices: self.devices })
    }
}

impl Served {
    /// Ends what is under way, and tells what was done. No vCPU runs.
    pub(super) fn end(self) -> Vec<DeviceReport> {
        drop(self.threads);
        let end = |device: &Arc<Device<Pinning>>| {
            let report = device.report();
            device.retire();
            report
        };
        self.devices.iter().map(end).collect()
    }
}

/// The model that `device` asks for.
fn model(device: &config::Device, ram: &ServedRam, dma: &Pinning) -> Result<Boxed, MachineError> {
    match &device.kind {
        DeviceKind::Disk(disk) => disk::model(&device.name, disk, dma),
        DeviceKind::Balloon(balloon) => balloon::model(balloon, ram),
        DeviceKind::Pmem(pmem) => Ok(pmem::model(pmem)),
        other => Err(MachineError::System {
            what: "a device",
            source: std::io::Error::other(format!("{} is not there", other.family())),
        }),
    }
}
