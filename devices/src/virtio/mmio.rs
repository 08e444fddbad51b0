//! The transport: virtio over MMIO, version 2 (virtio 1.2, section 4.2).
//!
//! One page of registers for each device. Registers are 32 bits wide and aligned; the configuration space behind them takes
//! any size. What a driver may not do (another width, a write to what is read-only, a queue that it set up already) is
//! without effect, as the specification allows, and reads as zero.

use std::sync::Arc;

use virtio_queue::QueueT;

use crate::bus::{BusDevice, Request};
use crate::dma::Dma;

use super::device::{Device, Face};

/// Bytes of a device's registers and configuration space.
pub const SIZE: u64 = 0x1000;
/// Where a driver writes the number of a queue that it has filled.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// `virt`, little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// `SLAT`.
const VENDOR: u32 = 0x5441_4c53;

// Offsets, table 4.1.
const MAGIC_VALUE: u64 = 0x00;
const DEVICE_VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const VENDOR_ID: u64 = 0x0c;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_DESC_LOW: u64 = 0x80;
const QUEUE_DESC_HIGH: u64 = 0x84;
const QUEUE_DRIVER_LOW: u64 = 0x90;
const QUEUE_DRIVER_HIGH: u64 = 0x94;
const QUEUE_DEVICE_LOW: u64 = 0xa0;
const QUEUE_DEVICE_HIGH: u64 = 0xa4;
/// Shared memory regions: there are none, which their length of all ones says.
const SHM_LEN_LOW: u64 = 0xb0;
const SHM_BASE_HIGH: u64 = 0xbc;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;

/// A device's page on the bus.
#[derive(Debug)]
pub struct Mmio<D: Dma>(Arc<Device<D>>);

impl<D: Dma> Mmio<D> {
    /// The page of `device`.
    pub fn new(device: Arc<Device<D>>) -> Mmio<D> {
        Mmio(device)
    }

    fn register(&self, offset: u64) -> u32 {
        // Without the lock: what an interrupt's handler reads.
        if offset == INTERRUPT_STATUS {
            return self.0.interrupt().status();
        }
        self.0.registers(|face| match offset {
            MAGIC_VALUE => MAGIC,
            DEVICE_VERSION => VERSION,
            DEVICE_ID => face.model().device_type().0,
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => word(face.offered(), face.state().device_features_sel),
            QUEUE_NUM_MAX => face.queue().map_or(0, |queue| queue.ring().max_size().into()),
            QUEUE_READY => face.queue().map_or(0, |queue| queue.is_ready().into()),
            STATUS => face.state().status,
            CONFIG_GENERATION => face.state().config_generation,
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        })
    }

    fn set_register(&self, offset: u64, value: u32) {
        match offset {
            // Both without the lock. A hypervisor that takes kicks by itself lets none of them come here.
            QUEUE_NOTIFY => return self.0.kick(value as u16),
            INTERRUPT_ACK => return self.0.interrupt().acknowledge(value),
            _ => {}
        }
        self.0.registers(|face| match offset {
            DEVICE_FEATURES_SEL => face.state().device_features_sel = value,
            DRIVER_FEATURES_SEL => face.state().driver_features_sel = value,
            DRIVER_FEATURES => accept(face, value),
            QUEUE_SEL => face.state().queue_sel = value,
            QUEUE_READY => face.set_ready(value == 1),
            STATUS => face.set_status(value),
            _ => set_up(face, offset, value),
        });
    }
}

/// The half of `features` that `select` names.
fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Writes `DriverFeatures`: not once they are agreed on (3.1.1).
fn accept<D: Dma>(face: &mut Face<'_, D>, value: u32) {
    let state = face.state();
    if state.status & virtio_bindings::bindings::virtio_config::VIRTIO_CONFIG_S_FEATURES_OK != 0 {
        return;
    }
    let (keep, shift) = match state.driver_features_sel {
        0 => (!u64::from(u32::MAX), 0),
        1 => (u64::from(u32::MAX), 32),
        _ => return,
    };
    state.driver_features = state.driver_features & keep | u64::from(value) << shift;
}

/// Writes what a queue is set up with.
fn set_up<D: Dma>(face: &mut Face<'_, D>, offset: u64, value: u32) {
    let Some(queue) = face.queue_in_the_making() else { return };
    let ring = queue.ring_mut();
    match offset {
        // A size that is no power of two, or too large, leaves the largest: the driver's rings do not fit that, and the
        // device breaks when it looks at them.
        QUEUE_NUM => ring.set_size(u16::try_from(value).unwrap_or(0)),
        QUEUE_DESC_LOW => ring.set_desc_table_address(Some(value), None),
        QUEUE_DESC_HIGH => ring.set_desc_table_address(None, Some(value)),
        QUEUE_DRIVER_LOW => ring.set_avail_ring_address(Some(value), None),
        QUEUE_DRIVER_HIGH => ring.set_avail_ring_address(None, Some(value)),
        QUEUE_DEVICE_LOW => ring.set_used_ring_address(Some(value), None),
        QUEUE_DEVICE_HIGH => ring.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}

impl<D: Dma> BusDevice for Mmio<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG {
            return self.0.registers(|face| face.model().read_config(offset - CONFIG, data));
        }
        if let Ok(register) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *register = self.register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        if offset >= CONFIG {
            self.0.registers(|face| face.model().write_config(offset - CONFIG, data));
        } else if let Ok(register) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.set_register(offset, u32::from_le_bytes(register));
        }
        None
    }
}
