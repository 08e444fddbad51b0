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

/// A queue, at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedQueue(#[serde(with = "Fields")] pub QueueState);

/// What is written of a queue, in this order.
#[derive(Serialize, Deserialize)]
#[serde(remote = "QueueState")]
struct Fields {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_written_as_an_object_of_its_fields_and_read_again() {
        let queue = SavedQueue(QueueState {
            max_size: 256,
            next_avail: 7,
            next_used: 6,
            event_idx_enabled: true,
            size: 16,
            ready: true,
            desc_table: 0x1000,
            avail_ring: 0x2000,
            used_ring: 0x3000,
        });
        let text = serde_json::to_string(&queue).unwrap();
        let expected = "{\"max_size\":256,\"next_avail\":7,\"next_used\":6,\"event_idx_enabled\":true,\
                        \"size\":16,\"ready\":true,\"desc_table\":4096,\"avail_ring\":8192,\"used_ring\":12288}";
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<SavedQueue>(&text).unwrap(), queue);
        assert!(serde_json::from_str::<SavedQueue>(&text.replace("\"size\":16,", "")).is_err());
    }
}
