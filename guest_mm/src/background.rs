//! Threads that work by themselves, a little at a time: what one works on, how it is paused and ended, and its pace.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// What a thread works on, and others look at between two pieces of its work.
#[derive(Debug)]
pub(crate) struct Workplace<W> {
    state: Mutex<State<W>>,
    changed: Condvar,
    /// Who waits for the lock. A thread that never pauses would take it again before they wake.
    visitors: AtomicU32,
}

#[derive(Debug)]
struct State<W> {
    work: W,
    paused: bool,
    stop: bool,
}

/// Holds the work: nobody is at it meanwhile.
#[derive(Debug)]
pub(crate) struct Visit<'a, W>(MutexGuard<'a, State<W>>);

impl<W> Deref for Visit<'_, W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.0.work
    }
}

impl<W> DerefMut for Visit<'_, W> {
    fn deref_mut(&mut self) -> &mut W {
        &mut self.0.work
    }
}

impl<W> Visit<'_, W> {
    /// Whether the thread rests, if there is one.
    pub(crate) fn is_paused(&self) -> bool {
        self.0.paused
    }
}

impl<W> Workplace<W> {
    pub(crate) fn new(work: W) -> Workplace<W> {
        let state = Mutex::new(State { work, paused: false, stop: false });
        Workplace { state, changed: Condvar::new(), visitors: AtomicU32::new(0) }
    }

    /// Waits for the piece of work in hand, and no other.
    pub(crate) fn visit(&self) -> Visit<'_, W> {
        // Relaxed: a hint to be fair, and no more.
        self.visitors.fetch_add(1, Ordering::Relaxed);
        let visit = Visit(self.lock());
        self.visitors.fetch_sub(1, Ordering::Relaxed);
        visit
    }

    /// The thread does nothing more until [`Workplace::resume`]; a piece of work in hand is done when this returns.
    pub(crate) fn pause(&self) {
        self.visit().0.paused = true;
        self.changed.notify_all();
    }

    /// It goes on.
    pub(crate) fn resume(&self) {
        self.visit().0.paused = false;
        self.changed.notify_all();
    }

    /// For the thread: its next piece of work, at `time` or later and not while it is paused; none when it is to end.
    /// Who pauses it waits for as long as this is held.
    pub(crate) fn turn(&self, time: Instant) -> Option<Visit<'_, W>> {
        while self.visitors.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            let wait = time.saturating_duration_since(Instant::now());
            if !state.paused && wait.is_zero() {
                return Some(Visit(state));
            }
            // A paused thread is woken; the time-out is for the one that paces itself.
            let wait = if state.paused { Duration::from_secs(3600) } else { wait };
            let woken = self.changed.wait_timeout(state, wait);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn set_stop(&self, stop: bool) {
        self.visit().0.stop = stop;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        // A panic in the thread has been printed. Counters are right by themselves, and audits look at the rest.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread at a workplace; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Background<W> {
    place: Arc<Workplace<W>>,
    thread: Option<JoinHandle<()>>,
}

impl<W: Send + 'static> Background<W> {
    /// Starts it, and not paused. `work` ends when [`Workplace::turn`] says so.
    ///
    /// # Errors
    /// What the system says about another thread.
    pub(crate) fn start(
        place: &Arc<Workplace<W>>,
        name: &str,
        work: impl FnOnce(&Workplace<W>) + Send + 'static,
    ) -> std::io::Result<Background<W>> {
        place.resume();
        place.set_stop(false);
        let at = Arc::clone(place);
        let thread = Builder::new().name(name.into()).spawn(move || work(&at))?;
        Ok(Background { place: Arc::clone(place), thread: Some(thread) })
    }
}

impl<W> Background<W> {
    /// Where it works.
    pub(crate) fn place(&self) -> &Workplace<W> {
        &self.place
    }
}

impl<W> Drop for Background<W> {
    fn drop(&mut self) {
        self.place.set_stop(true);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

/// How fast to work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    each: Option<Duration>,
    next: Instant,
}

impl Pace {
    /// So many units of work in a second; none: without a pause.
    pub(crate) fn per_second(rate: Option<u32>) -> Pace {
        let each = rate.map(|rate| Duration::from_secs(1) / rate.max(1));
        Pace { each, next: Instant::now() }
    }

    /// When the next piece of work is due.
    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// So many units were done. What is late is not made up for.
    pub(crate) fn done(&mut self, units: u32) {
        if let Some(each) = self.each {
            self.next = Instant::now().max(self.next + each * units);
        }
    }

    /// Nothing is due for `time`.
    pub(crate) fn idle(&mut self, time: Duration) {
        self.next = self.next.max(Instant::now() + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visitor_comes_between_two_pieces_of_work_of_a_thread_that_never_pauses() {
        let place = Arc::new(Workplace::new(0u64));
        let thread = Background::start(&place, "works", |place| {
            while let Some(mut work) = place.turn(Instant::now()) {
                *work += 1;
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let thread = thread.unwrap();
        for _ in 0..20 {
            let before = *place.visit();
            let waited = Instant::now();
            let seen = *place.visit();
            assert!(seen <= before + 50 || waited.elapsed() < Duration::from_secs(1));
        }
        thread.place().pause();
        let rested = *place.visit();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(*place.visit(), rested);
        assert!(place.visit().is_paused());
        thread.place().resume();
        while *place.visit() == rested {
            std::thread::yield_now();
        }
        thread.place().pause();
        drop(thread);
    }
}
