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
    pub(crate) use std::thread::yield_now;
}

#[cfg(loom)]
mod imp {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now;
}

#[cfg(all(debug_assertions, not(loom)))]
mod order;
mod rank;

pub(crate) use rank::Rank;

pub(crate) use imp::{Arc, AtomicU32, AtomicU64, Ordering, yield_now};

/// A full barrier: what this thread stored before is seen by all before it loads anything after.
pub(crate) fn full_fence() {
    imp::fence(Ordering::SeqCst);
}

/// Keeps the compiler from moving accesses across it; the processor may.
#[inline]
pub(crate) fn compiler_barrier() {
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
}

/// A full barrier between an atomic read-modify-write of this thread and what follows. On x86 the
/// locked instruction is one already (SDM vol. 3A, 9.2.2: loads and stores are not reordered with locked
/// instructions), and only the compiler has to be told.
#[inline]
pub(crate) fn full_fence_after_rmw() {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    compiler_barrier();
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    full_fence();
}

/// What `word` holds, for who alone may write it: the holder of a lock.
///
/// loom remembers one last access of each word, and tries other orders around that alone. Seen by it, this look would
/// take the place of another thread's, and the store that follows would be taken to meet nobody.
pub(crate) fn own_word(word: &AtomicU64) -> u64 {
    #[cfg(not(loom))]
    return word.load(Ordering::Relaxed);
    #[cfg(loom)]
    #[allow(unsafe_code, reason = "a load that the model checker does not schedule")]
    // SAFETY: nobody stores to the word meanwhile, because the caller holds the lock that it takes; loom checks it.
    return unsafe { word.unsync_load() };
}

/// A mutual-exclusion lock without poisoning: a panic under it is a bug that every later user sees. With debug assertions
/// the order in which locks are taken is checked.
#[derive(Debug)]
pub(crate) struct Lock<T> {
    #[cfg(all(debug_assertions, not(loom)))]
    rank: Rank,
    mutex: imp::Mutex<T>,
}

/// Holds a [`Lock`].
pub(crate) struct Held<'a, T> {
    guard: imp::MutexGuard<'a, T>,
    #[cfg(all(debug_assertions, not(loom)))]
    _mark: order::Mark,
}

impl<T> Lock<T> {
    /// An open lock around `value`, taken in the order of `rank`.
    #[cfg(not(loom))]
    pub(crate) const fn new(rank: Rank, value: T) -> Lock<T> {
        #[cfg(not(debug_assertions))]
        let _ = rank;
        Lock {
            #[cfg(debug_assertions)]
            rank,
            mutex: imp::Mutex::new(value),
        }
    }

    /// An open lock around `value`.
    #[cfg(loom)]
    pub(crate) fn new(_rank: Rank, value: T) -> Lock<T> {
        Lock { mutex: imp::Mutex::new(value) }
    }

    /// Takes it, waiting for as long as that needs.
    ///
    /// # Panics
    /// If a thread panicked while it held the lock: what it guards may be half done.
    pub(crate) fn lock(&self) -> Held<'_, T> {
        Held {
            #[cfg(all(debug_assertions, not(loom)))]
            _mark: order::Mark::take(self.rank),
            guard: self.hold(),
        }
    }

    /// As [`Lock::lock`], where the rank depends on what the lock guards, so that it is checked when it is held.
    pub(crate) fn lock_as(&self, _rank: impl FnOnce(&T) -> Rank) -> Held<'_, T> {
        let guard = self.hold();
        Held {
            #[cfg(all(debug_assertions, not(loom)))]
            _mark: order::Mark::take(_rank(&guard)),
            guard,
        }
    }

    /// As [`Lock::lock_as`], for the directory above a frozen table.
    pub(crate) fn lock_above_frozen(&self, _rank: impl FnOnce(&T) -> Rank) -> Held<'_, T> {
        let guard = self.hold();
        Held {
            #[cfg(all(debug_assertions, not(loom)))]
            _mark: order::Mark::take_above_frozen(_rank(&guard)),
            guard,
        }
    }

    fn hold(&self) -> imp::MutexGuard<'_, T> {
        self.mutex.lock().expect("a thread panicked while it held this lock")
    }
}

impl<T> std::ops::Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> std::ops::DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Held<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
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

/// What every pin reads and nobody writes, kept in the second half of 128 bytes.
///
/// A pin stores to its thread's slot among the walkers, which lies in the first half of 128 bytes. A load whose
/// address ends in the same 12 bits as a store before it is held up until the store is done ("4K
/// aliasing": Intel's optimization manual, memory disambiguation), and where the allocator happens to put
/// both decides whether it does: with another guard, which stored more, a pin took 28 ns or 52 ns.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Apart<T> {
    first_half: [u64; 8],
    value: T,
}

impl<T> Apart<T> {
    /// Keeps `value` there.
    pub(crate) fn new(value: T) -> Apart<T> {
        const { assert!(size_of::<T>() <= 64, "it has to fit the second half") };
        Apart { first_half: [0; 8], value }
    }
}

impl<T> std::ops::Deref for Apart<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}
