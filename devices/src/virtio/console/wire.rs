//! What the driver of a console sees: features and the configuration space (virtio 1.2, section 5.3).

/// The size of the console is in the configuration space (5.3.3).
pub const F_SIZE: u64 = 1 << 0;
/// A byte may be written there before the queues work.
pub const F_EMERG_WRITE: u64 = 1 << 2;

/// Queue of what goes to the guest (5.3.2).
pub const RX: u16 = 0;
/// Queue of what comes from it.
pub const TX: u16 = 1;
/// Descriptors of each.
pub const QUEUE_SIZE: u16 = 64;

/// Offset of `emerg_wr`.
const EMERG_WR: u64 = 8;

/// What a terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Size {
    /// The configuration space, 5.3.4.
    pub fn config(self) -> [u8; 12] {
        let mut space = [0; 12];
        space[..2].copy_from_slice(&self.columns.to_le_bytes());
        space[2..4].copy_from_slice(&self.rows.to_le_bytes());
        // max_nr_ports
        space[4..8].copy_from_slice(&1_u32.to_le_bytes());
        space
    }
}

/// The character that a write to the configuration space says, if it does: the lowest byte of `emerg_wr` (5.3.4).
pub fn emergency(offset: u64, data: &[u8]) -> Option<u8> {
    (offset == EMERG_WR).then(|| data.first().copied()).flatten()
}
