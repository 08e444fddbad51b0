//! I/O ports. CPL 3 reaches those that the TSS's permission bitmap opens (`entry.S`); any other is a #GP.

use core::arch::asm;

/// Writes a byte to `port`.
pub fn write(port: u16, value: u8) {
    // SAFETY: the opened ports belong to a UART, the debug exit and the i8042's command register; none of them moves memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

/// Reads a byte from `port`.
pub fn read(port: u16) -> u8 {
    let value;
    // SAFETY: as for `write`.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags));
    }
    value
}
