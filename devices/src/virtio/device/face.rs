//! A device as its registers reach it: the life that a driver leads it through (virtio 1.2, 3.1).

use std::thread::sleep;
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use crate::dma::Dma;
use crate::virtio::model::Model;
use crate::virtio::queue::{Broken, Queue};
use crate::virtio::state::Registers;

use super::{Core, Device, FEATURES, NAP};

/// How long a reset waits for requests under way. The kernel has them; it lets go when the file answers.
const RESET_PATIENCE: Duration = Duration::from_secs(10);

/// A device while a vCPU is at its registers.
pub(in crate::virtio) struct Face<'a, D: Dma> {
    pub(super) device: &'a Device<D>,
    pub(super) core: &'a mut Core<D>,
}

impl<D: Dma> Face<'_, D> {
    pub(in crate::virtio) fn model(&mut self) -> &mut dyn Model<D> {
        &mut *self.core.model
    }

    pub(in crate::virtio) fn state(&mut self) -> &mut Registers {
        &mut self.core.registers
    }

    pub(in crate::virtio) fn offered(&self) -> u64 {
        FEATURES | self.core.model.features()
    }

    /// The queue that `QueueSel` names.
    pub(in crate::virtio) fn queue(&mut self) -> Option<&mut Queue> {
        self.core.queues.get_mut(self.core.registers.queue_sel as usize)
    }

    /// The same, while the driver may still set it up (4.2.3.2: not once it is ready).
    pub(in crate::virtio) fn queue_in_the_making(&mut self) -> Option<&mut Queue> {
        let features_ok = self.core.registers.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        self.queue().filter(|queue| features_ok && !queue.is_ready())
    }

    /// Writes `QueueReady`.
    pub(in crate::virtio) fn set_ready(&mut self, ready: bool) {
        let event_idx = self.core.registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let running = self.core.is_running();
        let Some(queue) = self.queue() else { return };
        queue.ring_mut().set_event_idx(event_idx);
        queue.set_ready(ready);
        if ready && running {
            let index = queue.index();
            self.check(index);
        }
    }

    fn check(&mut self, index: u16) {
        let queue = &self.core.queues[usize::from(index)];
        let memory = self.device.dma.view();
        if let Err(error) = queue.check(&memory) {
            drop(memory);
            self.core.break_down(self.device, &error);
        }
    }

    /// Writes `Status` (3.1.1: the driver sets one bit after the other, and clears them all by a reset).
    pub(in crate::virtio) fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let core = &mut *self.core;
        let new = value & !core.registers.status;
        if new & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let asked = core.registers.driver_features;
            let offered = FEATURES | core.model.features();
            let modern = asked & 1 << VIRTIO_F_VERSION_1 != 0;
            if modern && asked & !offered == 0 {
                core.registers.status |= VIRTIO_CONFIG_S_FEATURES_OK;
            }
        }
        let others =
            VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET;
        core.registers.status |= new & 0xff & !others;
        let agreed = core.registers.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 && agreed && core.broken.is_none() {
            core.registers.status |= VIRTIO_CONFIG_S_DRIVER_OK;
            self.start();
        }
        if new & VIRTIO_CONFIG_S_FAILED != 0
            && let Some(watch) = &self.core.watch
        {
            self.core.model.reset(watch);
        }
    }

    fn start(&mut self) {
        for index in 0..self.core.queues.len() {
            if self.core.queues[index].is_ready() {
                self.check(index as u16);
            }
        }
        if !self.core.is_running() {
            return;
        }
        let features = self.core.registers.driver_features;
        if let Err(error) = self.core.burst(self.device, |model, io| model.start(features, io)) {
            return self.core.break_down(self.device, &error);
        }
        if self.core.paused
            && let Some(watch) = &self.core.watch
        {
            self.core.model.pause(watch);
        }
        // Drivers may fill a queue before the device is ready, and kick into the void.
        for queue in self.core.queues.iter().filter(|queue| queue.is_ready()) {
            self.device.kick(queue.index());
        }
    }

    /// 2.4: when `Status` reads 0 again, nothing of the device is under way any more.
    fn reset(&mut self) {
        let deadline = Instant::now() + RESET_PATIENCE;
        if let Some(watch) = &self.core.watch {
            self.core.model.reset(watch);
        }
        // The device thread cannot: it needs the lock.
        while let Some(in_flight) = {
            self.core.model.reap();
            self.core.model.in_flight()
        } {
            if Instant::now() >= deadline {
                let what = format!("a reset waits for {}", in_flight.oldest);
                return self.core.break_down(self.device, &Broken::Host(what));
            }
            sleep(NAP);
        }
        for queue in &mut self.core.queues {
            queue.reset();
        }
        let generation = self.core.registers.config_generation;
        self.core.registers = Registers { config_generation: generation, ..Registers::default() };
        self.core.broken = None;
        self.device.interrupt.acknowledge(u32::MAX);
    }
}
