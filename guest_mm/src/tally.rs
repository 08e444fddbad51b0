//! Counters for what happens every few nanoseconds: each thread counts in a cache line of its own.
//!
//! A thread that counts anywhere has a number, which it gives back when it ends. The first [`OWN`] numbers
//! have a line to themselves, where nobody else adds, so an addition is a load and a store; later
//! threads share the last line and add atomically.

use crate::sync::{AtomicU64, Ordering};

/// Threads that have a line of their own.
const OWN: usize = if cfg!(loom) { 0 } else { 15 };

#[derive(Debug)]
#[repr(align(64))]
struct Line<const N: usize>([AtomicU64; N]);

/// `N` counters, at most 8.
#[derive(Debug)]
pub(crate) struct Tally<const N: usize>(Box<[Line<N>]>);

impl<const N: usize> Tally<N> {
    pub(crate) fn new() -> Tally<N> {
        let line = || Line(std::array::from_fn(|_| AtomicU64::new(0)));
        Tally((0..=OWN).map(|_| line()).collect())
    }

    /// Adds `n` to counter `index`.
    #[inline]
    pub(crate) fn add(&self, index: usize, n: u64) {
        let thread = thread_number();
        if thread < OWN {
            let counter = &self.0[thread].0[index];
            counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        } else {
            self.0[OWN].0[index].fetch_add(n, Ordering::Relaxed);
        }
    }

    /// What all threads have counted.
    pub(crate) fn sums(&self) -> [u64; N] {
        std::array::from_fn(|i| self.0.iter().map(|line| line.0[i].load(Ordering::Relaxed)).sum())
    }
}

#[cfg(loom)]
fn thread_number() -> usize {
    OWN
}

#[cfg(not(loom))]
use numbers::thread_number;

#[cfg(not(loom))]
mod numbers {
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use super::OWN;

    /// Numbers below `fresh` that nobody has are in `free`. Its lock also hands a line on from one thread to
    /// the next: what the last has counted is there before the next adds to it.
    struct Numbers {
        free: BTreeSet<usize>,
        fresh: usize,
    }

    static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers { free: BTreeSet::new(), fresh: 0 });

    /// Not asked for yet.
    const NONE: usize = usize::MAX;

    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(NONE) };
        static LEASE: Lease = const { Lease };
    }

    /// Gives the number back when the thread ends.
    struct Lease;

    impl Drop for Lease {
        fn drop(&mut self) {
            // What still counts while the thread ends shares the last line.
            let number = NUMBER.replace(OWN);
            if let Ok(mut numbers) = NUMBERS.lock() {
                numbers.free.insert(number);
            }
        }
    }

    #[inline]
    pub(super) fn thread_number() -> usize {
        match NUMBER.get() {
            NONE => lease(),
            number => number,
        }
    }

    #[cold]
    fn lease() -> usize {
        let number = LEASE.try_with(|_| {
            let mut numbers = NUMBERS.lock().ok()?;
            let fresh = numbers.fresh;
            // The lowest: a thread that stays should not share a line while one is free.
            Some(numbers.free.pop_first().unwrap_or_else(|| {
                numbers.fresh += 1;
                fresh
            }))
        });
        let number = number.ok().flatten().unwrap_or(OWN);
        NUMBER.set(number);
        number
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_many_threads_count_adds_up() {
        let tally = Tally::<2>::new();
        for _ in 0..4 {
            std::thread::scope(|scope| {
                for _ in 0..2 * OWN {
                    scope.spawn(|| (0..1000).for_each(|_| tally.add(1, 2)));
                }
            });
        }
        assert_eq!(tally.sums(), [0, 4 * 2 * OWN as u64 * 2000]);
    }
}
