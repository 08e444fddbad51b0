//! A virtio device: a model with its queues, status and interrupt, whatever the transport.
//!
//! vCPUs reach it through the transport's registers, its device thread through events. Both take its one lock, for the time
//! of a register or of a burst; a kick and an interrupt go without it. What breaks the device (a chain that is none, memory
//! that cannot be used) ends here: it says `DEVICE_NEEDS_RESET`, holds nothing of the guest any more and does nothing until
//! it is reset. The machine and the other devices go on.

mod face;
mod rest;

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::dma::Dma;

use super::gate::Gate;
use super::interrupt::{CONFIG_CHANGE, Interrupt};
use super::model::{Io, Model, Progress};
use super::queue::{Broken, Queue};
use super::state::Registers;
use super::watch::{Source, Watch};

pub(super) use face::Face;
pub use rest::{Misfit, Restless, Shape};

/// What every device offers: the rules of virtio 1, indirect descriptors, and indices that say when to notify.
pub const FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Between two looks at whether they are done.
const NAP: Duration = Duration::from_micros(100);

/// A device.
pub struct Device<D: Dma> {
    name: String,
    dma: D,
    kicks: Vec<EventFd>,
    interrupt: Interrupt,
    core: Mutex<Core<D>>,
}

/// What the lock is for.
struct Core<D: Dma> {
    model: Box<dyn Model<D>>,
    queues: Vec<Queue>,
    registers: Registers,
    watch: Option<Watch>,
    /// Kicks wait until the device is resumed.
    paused: bool,
    /// Why it needs a reset.
    broken: Option<String>,
    /// How often it broke.
    breaks: u64,
}

impl<D: Dma> fmt::Debug for Device<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What is told of a device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// Its type's number.
    pub device_type: u32,
    /// Why it needs a reset now.
    pub broken: Option<String>,
    /// How often it broke.
    pub breaks: u64,
    /// Interrupts.
    pub interrupts: u64,
    /// What the model counts.
    #[serde(serialize_with = "by_name")]
    pub counts: Vec<(&'static str, u64)>,
}

/// Counts as an object.
fn by_name<S: serde::Serializer>(
    counts: &[(&'static str, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().copied())
}

impl<D: Dma> Device<D> {
    /// A device that nobody has touched. `name` is for people.
    ///
    /// # Errors
    /// No event is to be had for a queue's kicks.
    pub fn new(
        name: impl Into<String>,
        dma: D,
        model: Box<dyn Model<D>>,
        interrupt: Interrupt,
    ) -> io::Result<Device<D>> {
        let sizes = model.queue_sizes();
        let kicks = sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK));
        let kicks = kicks.collect::<Result<Vec<_>, _>>()?;
        let arrivals = dma.arrivals();
        let queue = |((index, &size), kick): ((u16, &u16), &EventFd)| {
            let gate = arrivals
                .as_ref()
                .map(|arrivals| kick.try_clone().map(|kick| Gate::new(Arc::clone(arrivals), kick)));
            io::Result::Ok(Queue::new(index, size).with_gate(gate.transpose()?))
        };
        let queues = (0..).zip(&sizes).zip(&kicks).map(queue).collect::<Result<_, _>>()?;
        let core = Core {
            model,
            queues,
            registers: Registers::default(),
            watch: None,
            paused: false,
            broken: None,
            breaks: 0,
        };
        Ok(Device { name: name.into(), dma, kicks, interrupt, core: Mutex::new(core) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The events that kick its queues.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Its interrupt.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// A model that panicked has failed its thread; the others still need the device to shut down.
    fn core(&self) -> MutexGuard<'_, Core<D>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `watch` tell of it, until it goes.
    pub(super) fn attach(&self, watch: Watch) -> io::Result<()> {
        for (queue, kick) in (0..).zip(&self.kicks) {
            watch.add_kick(std::os::fd::AsRawFd::as_raw_fd(kick), queue)?;
        }
        self.core().watch = Some(watch);
        Ok(())
    }

    /// Serves an event. On its device thread.
    pub(super) fn serve(&self, source: Source) {
        let mut core = self.core();
        if let Source::Kick(queue) = source {
            if core.paused {
                // Left signalled: whoever resumes adds the event again.
                return;
            }
            // Nothing to read: somebody was faster.
            let _ = self.kicks[usize::from(queue)].read();
            if !core.is_running() || !core.queues[usize::from(queue)].is_ready() {
                return;
            }
        }
        let result = core.burst(self, |model, io| match source {
            Source::Kick(queue) => model.kicked(queue, io),
            Source::Own(token) => model.ready(token, io).map(|()| Progress::Done),
        });
        match (result, source) {
            (Ok(Progress::More), Source::Kick(queue)) => self.kick(queue),
            (Ok(_), _) => {}
            (Err(error), _) => core.break_down(self, &error),
        }
    }

    /// Kicks queue `queue`, as a driver does.
    pub fn kick(&self, queue: u16) {
        if let Some(kick) = self.kicks.get(usize::from(queue)) {
            // It is full: then it is signalled.
            let _ = kick.write(1);
        }
    }

    /// Ends what is under way and forgets the driver, as a reset by it: nothing of the guest is held any more.
    pub fn retire(&self) {
        self.registers(|face| face.set_status(0));
    }

    /// What is told of it.
    pub fn report(&self) -> DeviceReport {
        let core = self.core();
        DeviceReport {
            name: self.name.clone(),
            device_type: core.model.device_type().0,
            broken: core.broken.clone(),
            breaks: core.breaks,
            interrupts: self.interrupt.count(),
            counts: core.model.stats(),
        }
    }

    /// Calls `change` with the model, for what an operator wants of it; the driver is told of a new configuration if
    /// `change` says so. `None` if the model is no `M`.
    pub fn with<M: Model<D>, R>(&self, change: impl FnOnce(&mut M) -> (R, ConfigIs)) -> Option<R> {
        let mut core = self.core();
        let model: &mut dyn Any = &mut *core.model;
        let (result, config) = change(model.downcast_mut::<M>()?);
        if config == ConfigIs::New {
            core.registers.config_generation = core.registers.config_generation.wrapping_add(1);
            if core.is_running() {
                let _ = self.interrupt.raise(CONFIG_CHANGE);
            }
        }
        Some(result)
    }

    /// Its registers' face: see [`super::mmio`].
    pub(super) fn registers<R>(&self, use_them: impl FnOnce(&mut Face<'_, D>) -> R) -> R {
        use_them(&mut Face { device: self, core: &mut self.core() })
    }
}

/// Whether a change made the configuration space read otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigIs {
    /// It reads as before.
    Same,
    /// The driver should read it again.
    New,
}

impl<D: Dma> Core<D> {
    fn is_running(&self) -> bool {
        self.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && self.broken.is_none()
    }

    /// Runs `work` with memory for a burst, which ends with it.
    fn burst<R>(
        &mut self,
        device: &Device<D>,
        work: impl FnOnce(&mut dyn Model<D>, &mut Io<'_, '_, D>) -> Result<R, Broken>,
    ) -> Result<R, Broken> {
        let Some(watch) = &self.watch else {
            return Err(Broken::Host("the device has no thread".into()));
        };
        let memory = device.dma.view();
        let mut io = Io {
            dma: &device.dma,
            memory: &memory,
            queues: &mut self.queues,
            watch,
            interrupt: &device.interrupt,
            kicks: &device.kicks,
        };
        work(&mut *self.model, &mut io)
    }

    /// The device does nothing more until it is reset.
    fn break_down(&mut self, device: &Device<D>, error: &Broken) {
        if let Some(watch) = &self.watch {
            self.model.reset(watch);
        }
        self.broken.get_or_insert_with(|| error.to_string());
        self.breaks += 1;
        // 2.1.2: the driver is told through a change of the configuration, if it is there.
        let told = self.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if told {
            let _ = device.interrupt.raise(CONFIG_CHANGE);
        }
    }
}
