//! The keyboard controller's ports, for what a machine without a keyboard needs of them: the reset line.
//!
//! The status register is constant: output buffer full, input buffer empty. That value is chosen for the two loops in which
//! a Linux guest reads it:
//! * probing drains the output buffer first. A buffer that is still full after 16 bytes means "no controller", and the
//!   driver leaves after 33 accesses. A status of zero would look like a controller that accepts commands and never
//!   answers: half a second of polling for each;
//! * rebooting waits for the input buffer to be empty before it sends the reset command. All ones would make it poll 65,536
//!   times.

use crate::bus::{BusDevice, PioRange, Request};

/// Data port.
pub const DATA_PORT: u64 = 0x60;
/// Status (read) and command (write) port.
pub const COMMAND_PORT: u64 = 0x64;

/// Range of [`I8042::Data`]. The ports are registered one by one: 0x61 between them belongs to the PIT and speaker.
pub const DATA_RANGE: PioRange = PioRange::fixed(DATA_PORT, 1);
/// Range of [`I8042::Command`].
pub const COMMAND_RANGE: PioRange = PioRange::fixed(COMMAND_PORT, 1);

/// Status bit 0: a byte waits for the CPU at the data port.
const STATUS_OUTPUT_FULL: u8 = 1 << 0;
/// Commands 0xf0..=0xff pulse the output lines whose bit is 0; line 0 is the CPU's reset.
const PULSE_OUTPUT: u8 = 0xf0;
const LINE_RESET: u8 = 1 << 0;

/// One of the two ports; neither has state, so they need not share any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum I8042 {
    /// The device at [`DATA_PORT`]: reads all ones, ignores writes.
    Data,
    /// The device at [`COMMAND_PORT`].
    Command,
}

impl BusDevice for I8042 {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if *self == Self::Command {
            data.fill(STATUS_OUTPUT_FULL);
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<Request> {
        let &command = data.first()?;
        let resets = command & PULSE_OUTPUT == PULSE_OUTPUT && command & LINE_RESET == 0;
        (*self == Self::Command && resets).then_some(Request::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> u8 {
        let mut data = [0xff];
        I8042::Command.read(0, &mut data);
        data[0]
    }

    #[test]
    fn only_the_reset_command_at_the_command_port_resets() {
        assert_eq!(I8042::Command.write(0, &[0xfe]), Some(Request::Reset));
        assert_eq!(I8042::Data.write(0, &[0xfe]), None);
        for command in [0x20, 0x60, 0xaa, 0xad, 0xd1, 0xff, 0xee] {
            assert_eq!(I8042::Command.write(0, &[command]), None, "{command:#x}");
        }
    }

    #[test]
    fn a_driver_that_drains_the_buffer_gives_up_instead_of_waiting_for_answers() {
        const BUFFER_SIZE: u32 = 16;
        let mut drained = 0;
        while status() & STATUS_OUTPUT_FULL != 0 && drained < BUFFER_SIZE {
            drained += 1;
        }
        assert_eq!(drained, BUFFER_SIZE);
    }

    #[test]
    fn a_reboot_finds_the_input_buffer_empty_at_once() {
        const INPUT_FULL: u8 = 1 << 1;
        assert_eq!(status() & INPUT_FULL, 0);
    }
}
