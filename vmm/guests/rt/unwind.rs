//! Two names that code of the crate `alloc` asks for: it was compiled for programs that unwind, and these do not.
//!
//! A panic ends the guest (`start`), so nobody calls them; they are there for the linker.

use crate::exit;

/// Where a clean-up on the way of an exception goes on.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    exit::exit(exit::PANIC)
}

/// What tells an unwinder where to land.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    exit::exit(exit::PANIC)
}
