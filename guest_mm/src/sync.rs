//! The only door to atomics, fences and locks: the standard library's, or loom's under the model
//! checker. Nothing that a model reaches names either by itself.
//!
//! loom treats SeqCst accesses as AcqRel ones; only its fences are sequentially consistent. So a
//! store→load pair is written as Relaxed accesses and a full fence, never as SeqCst accesses. loom does
//! not explore load buffering; no protocol here leans on its absence.

#[cfg(not(loom))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard};
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
}

pub(crate) use imp::{Arc, AtomicU32, AtomicU64, Ordering};

/// A full barrier: what this thread stored before is seen by all before it loads anything after.
pub(crate) fn full_fence() {
    imp::fence(Ordering::SeqCst);
}

/// A full barrier between an atomic read-modify-write of this thread and what follows. On x86 the
/// locked instruction is one already (SDM vol. 3A, 9.2.2: loads and stores are not reordered with locked
/// instructions), and only the compiler has to be told.
#[inline]
pub(crate) fn full_fence_after_rmw() {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    full_fence();
}

/// A mutual-exclusion lock without poisoning: a panic under it is a bug that every later user sees.
#[derive(Debug, Default)]
pub(crate) struct Lock<T>(imp::Mutex<T>);

/// Holds a [`Lock`].
pub(crate) type Held<'a, T> = imp::MutexGuard<'a, T>;

impl<T> Lock<T> {
    /// An open lock around `value`.
    pub(crate) fn new(value: T) -> Lock<T> {
        Lock(imp::Mutex::new(value))
    }

    /// Takes it, waiting for as long as that needs.
    ///
    /// # Panics
    /// If a thread panicked while it held the lock: what it guards may be half done.
    pub(crate) fn lock(&self) -> Held<'_, T> {
        self.0.lock().expect("a thread panicked while it held this lock")
    }
}

/// `count` zeroed words, untouched by the processor: pages of zeroes that the host only backs when
/// they are first written.
pub(crate) fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
    #[cfg(not(loom))]
    #[allow(unsafe_code, reason = "a calloc'd array of plain words, viewed as atomics")]
    {
        let words = vec![0u64; count].into_boxed_slice();
        let raw = Box::into_raw(words);
        // SAFETY:
        // 1. `AtomicU64` has the size, the alignment (8 on every 64-bit target) and the valid values of
        //    `u64`, so the layout that the box was allocated with is that of the new type;
        // 2. `raw` comes from `Box::into_raw` and is used once.
        unsafe { Box::from_raw(raw as *mut [AtomicU64]) }
    }
    #[cfg(loom)]
    (0..count).map(|_| AtomicU64::new(0)).collect()
}
