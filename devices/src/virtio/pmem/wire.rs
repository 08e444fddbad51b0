//! What the driver of persistent memory sees: the configuration space and requests (virtio 1.2, section 5.19).

/// The queue of requests (5.19.2).
pub const REQUESTS: u16 = 0;
/// Its descriptors; a request takes two.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of a request, and of its answer.
pub const WORD: u64 = 4;
/// The one type of request there is: stores are to last (5.19.6).
pub const FLUSH: u32 = 0;
/// The answer to one that succeeded.
pub const OK: u32 = 0;
/// The answer to one that failed.
pub const FAILED: u32 = 1;

/// Where the memory is in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its first guest-physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Region {
    /// The configuration space, 5.19.4.
    pub fn config(self) -> [u8; 16] {
        let mut space = [0; 16];
        space[..8].copy_from_slice(&self.start.to_le_bytes());
        space[8..].copy_from_slice(&self.size.to_le_bytes());
        space
    }
}
