//! What the driver of an entropy device sees: one queue, no features and no configuration space (virtio 1.2, section 5.4).

/// The queue of requests (5.4.2).
pub const REQUESTS: u16 = 0;
/// Its descriptors.
pub const QUEUE_SIZE: u16 = 64;
/// The most bytes of an answer. A driver has to take less than it asked for (5.4.6.1), and asks again.
pub const MOST: u64 = 64 << 10;
