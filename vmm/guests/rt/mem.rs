//! The four C functions that compiled Rust calls by name; there is no libc to take them from.
//!
//! In string instructions: a loop in Rust could be recognised as `memcpy` and compiled into a call to itself.

use core::arch::asm;

/// C's `memcpy`.
///
/// # Safety
/// As C says: `n` readable bytes at `src`, `n` writable bytes at `dst`, no overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise; DF is clear, as the ABI has it.
    unsafe {
        asm!("rep movsb", inout("rcx") n => _, inout("rdi") dst => _, inout("rsi") src => _, options(nostack, preserves_flags));
    }
    dst
}

/// C's `memmove`.
///
/// # Safety
/// As C says: `n` readable bytes at `src`, `n` writable bytes at `dst`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    if (dst as usize).wrapping_sub(src as usize) >= n {
        // SAFETY: `dst` does not start inside the source, so a forward copy reads each byte before it is overwritten.
        return unsafe { memcpy(dst, src, n) };
    }
    // SAFETY: the caller's promise; backwards, because `dst` starts inside the source (so n > 0). DF is clear again after.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") n => _, inout("rdi") dst.add(n - 1) => _, inout("rsi") src.add(n - 1) => _,
            options(nostack),
        );
    }
    dst
}

/// C's `memset`.
///
/// # Safety
/// As C says: `n` writable bytes at `dst`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(dst: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise; DF is clear, as the ABI has it.
    unsafe {
        asm!("rep stosb", inout("rcx") n => _, inout("rdi") dst => _, in("al") byte as u8, options(nostack, preserves_flags));
    }
    dst
}

/// C's `memcmp`.
///
/// # Safety
/// As C says: `n` readable bytes at `a` and at `b`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: i < n.
        let (a, b) = unsafe { (a.add(i).read(), b.add(i).read()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// LLVM's name for a `memcmp` of which only zero matters.
///
/// # Safety
/// As [`memcmp`].
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, n) }
}
