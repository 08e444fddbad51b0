//! The console: a 16550 UART at 0x3f8, which the monitor has set up.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::port;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const DATA_READY: u8 = 1 << 0;

/// ASCII end of transmission, Ctrl-D.
pub const EOT: u8 = 4;

static LOCK: AtomicBool = AtomicBool::new(false);

/// Sends a byte. Does not poll for room: every access is an exit to the monitor, and its transmitter is always empty.
pub fn send(byte: u8) {
    port::write(DATA, byte);
}

/// Waits for a byte.
pub fn receive() -> u8 {
    while port::read(LINE_STATUS) & DATA_READY == 0 {
        core::hint::spin_loop();
    }
    port::read(DATA)
}

/// Unlocked writer, for a reporter that must not wait for whoever holds the lock.
pub struct Raw;

impl Write for Raw {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        s.bytes().for_each(send);
        Ok(())
    }
}

/// What [`print!`](crate::print) calls: one CPU's text at a time.
pub fn print(args: fmt::Arguments<'_>) {
    // Acquire pairs with the release below. The UART is the only thing that the lock guards.
    while LOCK.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let _ = Raw.write_fmt(args);
    LOCK.store(false, Ordering::Release);
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::serial::print(format_args!($($arg)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($arg)*))) };
}
