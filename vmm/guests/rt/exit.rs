//! Ways for a guest to end.

use core::arch::asm;

use crate::port;

/// The debug-exit port: the byte written is the verdict, and the monitor's exit code.
pub const PORT: u16 = 0xf4;

const I8042_COMMAND: u16 = 0x64;
const I8042_PULSE_RESET: u8 = 0xfe;

/// Verdict: the check that the guest exists for failed.
pub const FAILED: u8 = 1;
/// Verdict: a command-line value was not understood.
pub const BAD_VALUE: u8 = 2;
/// Verdict: an exception was reported.
pub const EXCEPTION: u8 = 101;
/// Verdict: a Rust panic was reported.
pub const PANIC: u8 = 102;
/// Verdict: the monitor went on running a guest that had asked for a reset.
pub const STILL_RUNNING: u8 = 103;

/// Ends the guest with `verdict`.
pub fn exit(verdict: u8) -> ! {
    port::write(PORT, verdict);
    halt()
}

/// #BP: its gate leads to `cli; hlt` (`entry.S`).
pub(crate) const HALT_VECTOR: u8 = 3;

/// Halts this CPU for good.
pub fn halt() -> ! {
    // SAFETY: the gate of `HALT_VECTOR` may be used at CPL 3 and leads to `cli; hlt; jmp`, which never returns.
    unsafe { asm!("int3", options(noreturn)) }
}

/// Asks the i8042 to pulse the reset line.
pub fn reset() -> ! {
    port::write(I8042_COMMAND, I8042_PULSE_RESET);
    exit(STILL_RUNNING)
}

/// Triple fault: an exception with nothing but not-present gates to go to.
pub fn triple_fault() -> ! {
    unsafe extern "C" {
        static mut idt: [[u64; 2]; 32];
    }
    // SAFETY: the IDT is memory that only the processor reads; that it becomes useless is the aim, and #UD uses it next.
    unsafe {
        (&raw mut idt).write_volatile([[0; 2]; 32]);
        asm!("ud2", options(noreturn))
    }
}

/// Jumps to bytes that are no instruction in 64-bit mode.
pub fn jump_to_garbage() -> ! {
    /// 0x06 is PUSH ES, which 64-bit mode does not have (SDM vol. 2, table A-2).
    static GARBAGE: [u8; 16] = [0x06; 16];
    // SAFETY: does not return: the first byte raises #UD, which is reported and ends the guest. No page is no-execute.
    unsafe { asm!("jmp {}", in(reg) GARBAGE.as_ptr(), options(noreturn)) }
}
