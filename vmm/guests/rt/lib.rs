//! The runtime under the built-in guests: from the boot protocol to `fn main(&Boot) -> u8` at CPL 3.
//!
//! The guests are entered as Linux's 64-bit boot protocol says (`Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"):
//! long mode, an identity map made by the monitor, interrupts off, RSI = `struct boot_params`. `entry.S` loads tables of its
//! own and leaves ring 0 for good; from there on everything is Rust at CPL 3, on an identity map, with three I/O devices:
//! UART, debug exit, i8042. One address space, no interrupts, and a heap in those guests that drive virtio devices.
#![cfg_attr(not(test), no_std)]

#[cfg(not(test))]
extern crate alloc;

pub mod boot_params;
pub mod cmdline;
pub mod flow;
pub mod heap;
pub mod histogram;
pub mod packet;
pub mod permutation;
pub mod randomness;
pub mod sectors;
pub mod virtio;

#[cfg(not(test))]
pub mod exception;
#[cfg(not(test))]
pub mod exit;
#[cfg(not(test))]
mod mem;
#[cfg(not(test))]
pub mod mp_table;
#[cfg(not(test))]
pub mod paging;
#[cfg(not(test))]
pub mod port;
#[cfg(not(test))]
pub mod ram;
#[cfg(not(test))]
pub mod serial;
#[cfg(not(test))]
pub mod smp;
#[cfg(not(test))]
mod start;
#[cfg(not(test))]
pub mod tsc;
#[cfg(not(test))]
mod unwind;

/// Names the guest's `fn(&Boot) -> u8`; what it returns is the guest's verdict.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        // SAFETY: the one definition of the symbol that `start` declares, and of the type declared there (checked by the
        // coercion in the first line).
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main(boot: &$crate::boot_params::Boot) -> u8 {
            let main: fn(&$crate::boot_params::Boot) -> u8 = $main;
            main(boot)
        }
    };
}
