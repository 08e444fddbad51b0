//! Who is inside of a walk, and what waits for them.
//!
//! ```text
//! enter-vs-collect        walker                          collector
//!                         E1 slot := period               G1 take the notes of what is unpublished
//!                         E2 light barrier                   by now and period += 1, in one step
//!                         E3 load entries                 G2 heavy barrier
//!                         E4 slot := 0                    G3 look at every slot
//!                                                         G4 free what was noted in a period before
//!                                                            those of all slots that are not 0
//!
//! Invariant   what is freed is out of every walker's reach: either G3 sees the slot of E1, or E3 sees that
//!             the thing is unpublished. A walker whose period is younger than a note has, with the
//!             period, seen all that happened before the note was taken.
//! Tolerated   a walker that read the period and was held up before E1 keeps things waiting for longer.
//! Origin      userspace RCU; the barriers are Linux 22e4ebb97582, "membarrier: Provide expedited private
//!             command".
//! ```
//!
//! E2 is on the path of every pin, G2 is not. So E2 only holds the compiler back, and G2 asks the kernel to
//! have every running thread of the process pass a full barrier, some microseconds for many notes at
//! once. Where the kernel does not offer that, and under the model checker, both are full barriers.

use crate::sync::{AtomicU64, Lock, Ordering, Rank, compiler_barrier, full_fence};

#[cfg(not(loom))]
pub(crate) use imp::prepare;
pub(crate) use imp::{Guard, Walkers};

#[cfg(all(test, loom))]
mod model;

/// A cell that is alone in its line. A walker's holds its period, or 0 outside.
#[derive(Debug)]
#[repr(align(128))]
struct Slot(AtomicU64);

/// Notes that are collected together.
const BATCH: usize = if cfg!(loom) { 1 } else { 32 };

/// The periods, and what waits for walkers to leave.
#[derive(Debug)]
struct Epochs<S, T> {
    /// Read by every walker: alone in its line, and changed with the notes locked.
    period: Slot,
    slots: Lock<Vec<S>>,
    /// Each with the period in which it was noted.
    notes: Lock<Vec<(u64, T)>>,
    /// Whether the kernel has other threads pass barriers, so that walkers need none.
    asymmetric: bool,
}

impl<S: std::ops::Deref<Target = Slot>, T> Epochs<S, T> {
    fn new(asymmetric: bool) -> Epochs<S, T> {
        let period = Slot(AtomicU64::new(1));
        Epochs {
            period,
            slots: Lock::new(Rank::Last, Vec::new()),
            notes: Lock::new(Rank::Last, Vec::new()),
            asymmetric,
        }
    }

    #[inline]
    fn enter(&self, slot: &Slot) {
        // E1. Acquire, with the release of G1. Release, with the acquire of G3, which may find this period and
        // so never see E4 of the walk before; what comes behind is ordered by E2.
        slot.0.store(self.period.0.load(Ordering::Acquire), Ordering::Release);
        // E2
        if self.asymmetric { compiler_barrier() } else { full_fence() }
    }

    /// Notes `thing`, unpublished just now; whether it is time to collect.
    fn note(&self, thing: T) -> bool {
        let mut notes = self.notes.lock();
        notes.push((self.period.0.load(Ordering::Relaxed), thing));
        notes.len() >= BATCH
    }

    /// What can be freed.
    fn collect(&self) -> impl Iterator<Item = T> {
        // G1. Release, with the acquire of E1. One step for whoever notes: a note is in the old period and has
        // happened before the new one begins, or it is in the new one.
        let notes = {
            let mut notes = self.notes.lock();
            self.period.0.fetch_add(1, Ordering::AcqRel);
            std::mem::take(&mut *notes)
        };
        // G2
        let passed = if self.asymmetric {
            imp::heavy_barrier()
        } else {
            full_fence();
            true
        };
        // G3. Acquire, with the release of E4.
        let inside = |slot: &S| Some(slot.0.load(Ordering::Acquire)).filter(|&period| period != 0);
        let oldest = self.slots.lock().iter().filter_map(inside).min().unwrap_or(u64::MAX);
        // Without the barrier a slot tells nothing, and everything has to wait for the next time.
        let oldest = if passed { oldest } else { 0 };
        // G4
        let (free, kept): (Vec<_>, Vec<_>) = notes.into_iter().partition(|note| note.0 < oldest);
        self.notes.lock().extend(kept);
        free.into_iter().map(|note| note.1)
    }
}

impl Slot {
    fn new() -> Slot {
        Slot(AtomicU64::new(0))
    }

    #[inline]
    fn leave(&self) {
        // E4. Release, with the acquire of G3: the walker is done with what it has read.
        self.0.store(0, Ordering::Release);
    }
}

/// The process's own: a thread has one slot, however many trees it walks.
#[cfg(not(loom))]
mod imp {
    use std::cell::Cell;
    use std::marker::PhantomData;
    use std::sync::LazyLock;

    use rustix::thread::{MembarrierCommand, membarrier};

    use super::super::node::Retired;
    use super::{Epochs, Slot};
    use crate::sync::{Lock, Rank};

    static EPOCHS: LazyLock<Epochs<&'static Slot, Retired>> = LazyLock::new(|| {
        let register = membarrier(MembarrierCommand::RegisterPrivateExpedited);
        Epochs::new(register.and_then(|()| membarrier(MembarrierCommand::PrivateExpedited)).is_ok())
    });

    /// Slots that no thread has.
    static FREE: Lock<Vec<&'static Slot>> = Lock::new(Rank::Last, Vec::new());

    /// Asks the kernel for its barriers now: a process that has several threads already waits for that, some
    /// milliseconds, and one that has a single thread does not.
    pub(crate) fn prepare() {
        LazyLock::force(&EPOCHS);
    }

    /// G2: returns when every thread of the process that runs has passed a full barrier; false when the kernel
    /// has no memory for that, or a filter of system calls came between.
    pub(super) fn heavy_barrier() -> bool {
        membarrier(MembarrierCommand::PrivateExpedited).is_ok()
    }

    /// A thread's place: where it notes that it is inside, and how many guards it holds.
    struct Here {
        slot: Cell<Option<(&'static Epochs<&'static Slot, Retired>, &'static Slot)>>,
        depth: Cell<u32>,
    }

    thread_local! {
        static HERE: Here = const { Here { slot: Cell::new(None), depth: Cell::new(0) } };
        static LEASE: Lease = const { Lease };
    }

    /// Gives the slot back when the thread ends.
    struct Lease;

    impl Drop for Lease {
        fn drop(&mut self) {
            FREE.lock().extend(HERE.with(|here| here.slot.take()).map(|place| place.1));
        }
    }

    #[cold]
    fn register() -> (&'static Epochs<&'static Slot, Retired>, &'static Slot) {
        let epochs = &*EPOCHS;
        let reused = FREE.lock().pop();
        let slot = reused.unwrap_or_else(|| {
            let slot: &'static Slot = Box::leak(Box::new(Slot::new()));
            epochs.slots.lock().push(slot);
            slot
        });
        HERE.with(|here| here.slot.set(Some((epochs, slot))));
        // A thread that is past its destructors keeps the slot for good.
        let _ = LEASE.try_with(|_| ());
        (epochs, slot)
    }

    /// Keeps what its thread can reach from being freed. It stays with its thread.
    #[derive(Debug)]
    pub(crate) struct Guard {
        slot: &'static Slot,
        stays: PhantomData<*const ()>,
    }

    impl Guard {
        #[inline]
        fn new() -> Guard {
            HERE.with(|here| {
                let (epochs, slot) = match here.slot.get() {
                    Some(place) => place,
                    None => register(),
                };
                let depth = here.depth.get();
                here.depth.set(depth + 1);
                if depth == 0 {
                    epochs.enter(slot);
                }
                Guard { slot, stays: PhantomData }
            })
        }

        /// Leaves for as long as `work` takes, which may wait for whatever it likes; unless the thread holds
        /// another guard.
        pub(crate) fn outside<R>(&mut self, work: impl FnOnce() -> R) -> R {
            let outside = HERE.with(|here| here.depth.get() == 1).then(|| Outside::new(self));
            let result = work();
            drop(outside);
            result
        }
    }

    impl Drop for Guard {
        #[inline]
        fn drop(&mut self) {
            HERE.with(|here| {
                let depth = here.depth.get() - 1;
                here.depth.set(depth);
                if depth == 0 {
                    self.slot.leave();
                }
            });
        }
    }

    /// Holds a guard open; the drop goes back in, after a panic too.
    struct Outside<'g>(&'g Guard);

    impl<'g> Outside<'g> {
        fn new(guard: &'g Guard) -> Outside<'g> {
            HERE.with(|here| here.depth.set(0));
            guard.slot.leave();
            Outside(guard)
        }
    }

    impl Drop for Outside<'_> {
        fn drop(&mut self) {
            HERE.with(|here| here.depth.set(1));
            EPOCHS.enter(self.0.slot);
        }
    }

    /// The walkers of a tree: those of the process.
    #[derive(Debug)]
    pub(crate) struct Walkers;

    impl Walkers {
        pub(crate) fn new() -> Walkers {
            Walkers
        }

        #[inline]
        pub(crate) fn enter(&self) -> Guard {
            Guard::new()
        }

        /// See [`Epochs::note`].
        pub(crate) fn note(&self, thing: Retired) -> bool {
            EPOCHS.note(thing)
        }

        /// See [`Epochs::collect`].
        pub(crate) fn collect(&self) -> impl Iterator<Item = Retired> {
            EPOCHS.collect()
        }
    }
}

/// A tree's own, made anew for every execution. Which thread has which slot is no part of the model.
#[cfg(loom)]
mod imp {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use loom::thread::ThreadId;

    use super::super::node::Retired;
    use super::{Epochs, Slot};
    use crate::sync::Arc;

    #[derive(Debug)]
    struct Shared {
        epochs: Epochs<Arc<Slot>, Retired>,
        /// Each thread's slot, and the guards that it holds.
        places: Mutex<HashMap<ThreadId, (Arc<Slot>, u32)>>,
    }

    pub(super) fn heavy_barrier() -> bool {
        unreachable!("a model has no kernel")
    }

    #[derive(Debug)]
    pub(crate) struct Walkers(Arc<Shared>);

    #[derive(Debug)]
    pub(crate) struct Guard(Arc<Shared>);

    impl Walkers {
        pub(crate) fn new() -> Walkers {
            let epochs = Epochs::new(false);
            Walkers(Arc::new(Shared { epochs, places: Mutex::default() }))
        }

        pub(crate) fn enter(&self) -> Guard {
            let guard = Guard(Arc::clone(&self.0));
            guard.enter();
            guard
        }

        pub(crate) fn note(&self, thing: Retired) -> bool {
            self.0.epochs.note(thing)
        }

        pub(crate) fn collect(&self) -> impl Iterator<Item = Retired> {
            self.0.epochs.collect()
        }
    }

    impl Guard {
        pub(crate) fn outside<R>(&mut self, work: impl FnOnce() -> R) -> R {
            self.leave();
            let result = work();
            self.enter();
            result
        }

        fn enter(&self) {
            let id = loom::thread::current().id();
            let known = self.0.places.lock().unwrap().get(&id).map(|place| Arc::clone(&place.0));
            let slot = known.unwrap_or_else(|| {
                let slot = Arc::new(Slot::new());
                self.0.epochs.slots.lock().push(Arc::clone(&slot));
                self.0.places.lock().unwrap().insert(id, (Arc::clone(&slot), 0));
                slot
            });
            if self.count(id, 1) == 1 {
                self.0.epochs.enter(&slot);
            }
        }

        fn leave(&self) {
            let id = loom::thread::current().id();
            if self.count(id, -1) == 0 {
                let slot = Arc::clone(&self.0.places.lock().unwrap()[&id].0);
                slot.leave();
            }
        }

        fn count(&self, id: ThreadId, change: i32) -> u32 {
            let mut places = self.0.places.lock().unwrap();
            let depth = &mut places.get_mut(&id).expect("the thread has a slot").1;
            *depth = depth.strict_add_signed(change);
            *depth
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            self.leave();
        }
    }
}
