//! A device at rest, saved, and restored.

use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_queue::QueueT;

use crate::dma::Dma;
use crate::virtio::state::{DeviceState, SavedQueue, VERSION};

use super::{Device, FEATURES, NAP};

/// A device did not come to rest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{device}: {requests} requests are still under way after {waited:?}, the oldest is {oldest}"
)]
pub struct Restless {
    /// The device.
    pub device: String,
    /// How many.
    pub requests: usize,
    /// What the oldest is.
    pub oldest: String,
    /// How long was waited.
    pub waited: Duration,
}

/// A device cannot become what was saved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device}: the saved state does not fit: {reason}")]
pub struct Misfit {
    /// The device.
    pub device: String,
    /// Why.
    pub reason: String,
}

/// What a driver can see of a device before it has done anything: what it takes to become what another one was.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// What kind of device it is (virtio 1.2, chapter 5).
    pub device_type: u32,
    /// The features that it offers.
    pub features: u64,
    /// The largest size of each of its queues.
    pub queues: Vec<u16>,
}

impl<D: Dma> Device<D> {
    /// What a driver can see of it.
    pub fn shape(&self) -> Shape {
        let model = &self.core().model;
        Shape {
            device_type: model.device_type().0,
            features: FEATURES | model.features(),
            queues: model.queue_sizes(),
        }
    }

    /// Lets it come to rest: no queue is served, no input taken, and nothing is pinned when this returns.
    ///
    /// # Errors
    /// [`Restless`] when requests are still under way at `deadline`; the device is resumed.
    pub fn quiesce(&self, deadline: Instant) -> Result<(), Restless> {
        let began = Instant::now();
        {
            let core = &mut *self.core();
            if !core.paused {
                core.paused = true;
                if let Some(watch) = &core.watch {
                    // Level-triggered: a kick that nobody may serve would wake the thread for ever.
                    for kick in &self.kicks {
                        let _ = watch.remove(kick.as_raw_fd());
                    }
                    core.model.pause(watch);
                }
            }
        }
        loop {
            let Some(in_flight) = self.core().model.in_flight() else { return Ok(()) };
            if Instant::now() >= deadline {
                self.resume();
                return Err(Restless {
                    device: self.name.clone(),
                    requests: in_flight.requests,
                    oldest: in_flight.oldest,
                    waited: began.elapsed(),
                });
            }
            sleep(NAP);
        }
    }

    /// Ends [`Device::quiesce`].
    pub fn resume(&self) {
        let core = &mut *self.core();
        if !core.paused {
            return;
        }
        core.paused = false;
        if let Some(watch) = &core.watch {
            for (queue, kick) in (0..).zip(&self.kicks) {
                let _ = watch.add_kick(kick.as_raw_fd(), queue);
            }
            if core.is_running() {
                core.model.resume(watch);
            }
        }
        // What came before the pause and was left.
        (0..).zip(&self.kicks).for_each(|(queue, _)| self.kick(queue));
    }

    /// What it is, at rest: after [`Device::quiesce`], with no vCPU running.
    pub fn save(&self) -> DeviceState {
        let core = self.core();
        DeviceState {
            version: VERSION,
            device_type: core.model.device_type().0,
            registers: core.registers,
            interrupt: self.interrupt.status(),
            queues: core.queues.iter().map(|queue| SavedQueue(queue.state())).collect(),
            model: core.model.save(),
        }
    }

    /// Becomes what `state` says. It is paused then: [`Device::resume`] starts it.
    ///
    /// # Errors
    /// [`Misfit`]; the device is to be thrown away.
    pub fn restore(&self, state: &DeviceState) -> Result<(), Misfit> {
        let misfit = |reason: String| Misfit { device: self.name.clone(), reason };
        let core = &mut *self.core();
        if state.version != VERSION {
            let reason =
                format!("it has version {}, and this program reads {VERSION}", state.version);
            return Err(misfit(reason));
        }
        let kind = core.model.device_type().0;
        if state.device_type != kind {
            return Err(misfit(format!(
                "it is of a device of type {}, not {kind}",
                state.device_type
            )));
        }
        if state.queues.len() != core.queues.len() {
            let (saved, here) = (state.queues.len(), core.queues.len());
            return Err(misfit(format!("it has {saved} queues, and the device {here}")));
        }
        let offered = FEATURES | core.model.features();
        let missing = state.registers.driver_features & !offered;
        if missing != 0 {
            return Err(misfit(format!(
                "its driver uses features that are not there: {missing:#x}"
            )));
        }
        core.model.restore(&state.model).map_err(misfit)?;
        for (queue, &SavedQueue(saved)) in core.queues.iter_mut().zip(&state.queues) {
            if saved.max_size != queue.ring().max_size() {
                let (then, now) = (saved.max_size, queue.ring().max_size());
                return Err(misfit(format!(
                    "its queue {} has {then} entries, not {now}",
                    queue.index()
                )));
            }
            queue.restore(saved).map_err(|error| misfit(error.to_string()))?;
        }
        core.registers = state.registers;
        let needs_reset = state.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0;
        core.broken = needs_reset.then(|| "it was broken when it was saved".into());
        self.interrupt.restore(state.interrupt);
        core.paused = true;
        if core.is_running() {
            let features = core.registers.driver_features;
            let started = core.burst(self, |model, io| model.start(features, io));
            started.map_err(|error| misfit(error.to_string()))?;
            if let Some(watch) = &core.watch {
                core.model.pause(watch);
            }
        }
        Ok(())
    }
}
