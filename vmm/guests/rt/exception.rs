//! Reports an exception on the console and ends the guest.

use core::fmt::Write;

use crate::{exit, serial};

/// What the stub in `entry.S` and the processor pushed (SDM vol. 3, figure 7-9).
#[repr(C)]
pub(crate) struct Frame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Runs at CPL 3, on the exception stack; `entry.S` lets only the first exception of all CPUs come here.
pub(crate) extern "C" fn report(frame: &Frame, cr2: u64) -> ! {
    let Frame { vector, error, rip, cs, rflags, rsp, ss } = frame;
    // Unlocked: the CPU that took the exception may hold the console's lock.
    let _ = writeln!(
        serial::Raw,
        "\nguest: exception {vector} ({}) err={error:#x} rip={rip:#x} cr2={cr2:#x} \
         cs={cs:#x} rflags={rflags:#x} rsp={rsp:#x} ss={ss:#x}",
        name(*vector),
    );
    exit::exit(exit::EXCEPTION)
}

/// SDM vol. 3, table 7-1.
fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug",
        2 => "NMI",
        4 => "#OF overflow",
        5 => "#BR bound range",
        6 => "#UD invalid opcode",
        7 => "#NM no math coprocessor",
        8 => "#DF double fault",
        10 => "#TS invalid TSS",
        11 => "#NP segment not present",
        12 => "#SS stack segment",
        13 => "#GP general protection",
        14 => "#PF page fault",
        16 => "#MF x87 error",
        17 => "#AC alignment check",
        18 => "#MC machine check",
        19 => "#XM SIMD error",
        20 => "#VE virtualization",
        21 => "#CP control protection",
        _ => "reserved",
    }
}
