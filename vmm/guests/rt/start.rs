//! `entry.S`, and the first Rust code at CPL 3.

use crate::boot_params::Boot;
use crate::{exception, exit, mp_table, println, smp};

/// Where `link.ld` puts the image.
const IMAGE_BASE: u64 = 0x10_0000;

core::arch::global_asm!(
    include_str!("entry.S"),
    IMAGE_BASE = const IMAGE_BASE,
    MAX_CPUS = const mp_table::MAX_CPUS,
    STACK_SIZE = const smp::STACK_SIZE,
    HALT_VECTOR = const exit::HALT_VECTOR,
    EXIT_PORT = const exit::PORT,
    EXCEPTION_VERDICT = const exit::EXCEPTION,
    start = sym start,
    ap_start = sym smp::ap_start,
    report = sym exception::report,
    options(att_syntax),
);

unsafe extern "Rust" {
    /// Defined by `rt::main!`.
    safe fn guest_main(boot: &Boot) -> u8;
}

extern "C" fn start(boot_params: *const u8) -> ! {
    // SAFETY: RSI at entry, which the boot protocol makes the address of `struct boot_params`; nothing has been written
    // below 1 MiB since, and nothing but the SMP trampoline will be (into a page that holds neither it nor the command line).
    let boot = unsafe { Boot::from_boot_params(boot_params) };
    exit::exit(guest_main(&boot))
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("guest: {info}");
    exit::exit(exit::PANIC)
}
