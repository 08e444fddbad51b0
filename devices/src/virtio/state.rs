//! What is kept of a device when its machine is saved.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::model::Saved;

/// The form of [`DeviceState`] that is written and read.
pub const VERSION: u16 = 1;

/// A device at rest: no request is under way, nothing is pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// The form of this.
    pub version: u16,
    /// What kind of device it is (virtio 1.2, chapter 5).
    pub device_type: u32,
    /// The registers.
    pub registers: Registers,
    /// Why its interrupt was raised, and not yet acknowledged.
    pub interrupt: u32,
    /// The queues.
    pub queues: Vec<SavedQueue>,
    /// What the model keeps.
    pub model: Saved,
}

/// The transport's registers that keep what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// `Status`.
    pub status: u32,
    /// `DeviceFeaturesSel`.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_sel: u32,
    /// `DriverFeatures`, both words.
    pub driver_features: u64,
    /// `QueueSel`.
    pub queue_sel: u32,
    /// `ConfigGeneration`.
    pub config_generation: u32,
}

/// A queue: the fields of `virtio_queue::QueueState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "they are named as in virtio-queue")]
pub struct SavedQueue {
    pub max_size: u16,
    pub next_avail: u16,
    pub next_used: u16,
    pub event_idx_enabled: bool,
    pub size: u16,
    pub ready: bool,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> SavedQueue {
        let QueueState { max_size, next_avail, next_used, event_idx_enabled, size, ready, .. } =
            state;
        let QueueState { desc_table, avail_ring, used_ring, .. } = state;
        SavedQueue {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        }
    }
}

impl From<SavedQueue> for QueueState {
    fn from(state: SavedQueue) -> QueueState {
        let SavedQueue { max_size, next_avail, next_used, event_idx_enabled, size, ready, .. } =
            state;
        let SavedQueue { desc_table, avail_ring, used_ring, .. } = state;
        QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        }
    }
}
