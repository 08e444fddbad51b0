//! A port through which a guest ends the run with a verdict.
//!
//! Built-in guests and tests use it: one byte written to [`PORT`] is the exit code the guest asks for, 0 for success. The
//! port is the one that other monitors use for their debug-exit device, so a guest program runs under either; unlike theirs
//! the byte is taken as it is, not shifted. It reads as ones.

use crate::bus::{BusDevice, PioRange, Request};

/// The port.
pub const PORT: u64 = 0xf4;

/// The range to register it with: one port, so wider writes are unclaimed and show up in the bus's record.
pub const RANGE: PioRange = PioRange::fixed(PORT, 1);

/// The device. It has no state.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugExit;

impl BusDevice for DebugExit {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<Request> {
        data.first().map(|&verdict| Request::Exit(verdict))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::bus::{Claimed, PioBus};

    #[test]
    fn the_byte_written_is_the_verdict_and_wider_writes_are_not_taken() {
        let mut bus = PioBus::new();
        bus.insert(RANGE, "debug-exit", Arc::new(Mutex::new(DebugExit))).unwrap();
        assert_eq!(bus.write(PORT, &[0]), Claimed::Yes(Some(Request::Exit(0))));
        assert_eq!(bus.write(PORT, &[42]), Claimed::Yes(Some(Request::Exit(42))));
        assert_eq!(bus.write(PORT, &[1, 0, 0, 0]), Claimed::No);
    }
}
