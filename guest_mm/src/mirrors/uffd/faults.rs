//! The threads that turn the window's faults into violations of the table.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::addr::Gpa;
use crate::prot::Access;
use crate::schedule;
use crate::sync::{Arc, AtomicU64, Ordering};

use super::Uffd;
use super::descriptor::BATCH;

/// Serves one violation; all else is the caller's.
pub(crate) type Handler = dyn Fn(Gpa, Access) + Send + Sync;

/// How the messages came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct FaultStats {
    /// Messages read.
    pub messages: u64,
    /// Reads that had any.
    pub batches: u64,
}

#[derive(Debug, Default)]
struct Tally {
    messages: AtomicU64,
    batches: AtomicU64,
}

/// Threads that serve a guest's faults until this is dropped.
#[derive(Debug)]
pub struct FaultThreads {
    stop: Arc<OwnedFd>,
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
}

const FAULT: epoll::EventData = epoll::EventData::new_u64(0);
const STOP: epoll::EventData = epoll::EventData::new_u64(1);

/// The stack of a fault thread: a fault's deepest call is a few KiB.
const STACK_BYTES: usize = 128 << 10;

impl FaultThreads {
    /// Starts `count` threads that call `handler` for every fault in the windows of `mirror`, and
    /// `on_failure` if they cannot go on.
    ///
    /// # Errors
    /// What the system says about another thread or descriptor.
    pub(crate) fn start(
        mirror: &Arc<Uffd>,
        count: usize,
        handler: &Arc<Handler>,
        on_failure: impl Fn() + Clone + Send + 'static,
    ) -> std::io::Result<FaultThreads> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let tally = Arc::new(Tally::default());
        let mut started = FaultThreads { stop, tally, threads: Vec::new() };
        for index in 0..count {
            let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            // One message wakes one thread, not all of them.
            let exclusive = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
            epoll::add(&events, &mirror.descriptor, FAULT, exclusive)?;
            epoll::add(&events, &*started.stop, STOP, epoll::EventFlags::IN)?;
            let (mirror, handler) = (Arc::clone(mirror), Arc::clone(handler));
            let on_failure = on_failure.clone();
            let tally = Arc::clone(&started.tally);
            let thread = Builder::new()
                .name(format!("fault{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    schedule::promptly();
                    let served = AssertUnwindSafe(|| serve(&mirror, &events, &*handler, &tally));
                    // Whoever waits for this thread would wait for ever. The panic has been printed.
                    if catch_unwind(served).is_err() {
                        on_failure();
                    }
                })?;
            started.threads.push(thread);
        }
        Ok(started)
    }

    /// How the messages came so far.
    pub fn stats(&self) -> FaultStats {
        FaultStats {
            messages: self.tally.messages.load(Ordering::Relaxed),
            batches: self.tally.batches.load(Ordering::Relaxed),
        }
    }
}

impl FaultThreads {
    /// Ends the threads, once each has served what it has read.
    pub(crate) fn stop(&mut self) {
        // Never read, so every thread sees it.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for FaultThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(mirror: &Uffd, events: &OwnedFd, handler: &Handler, tally: &Tally) {
    let mut ready = Vec::with_capacity(2);
    let mut messages = Vec::with_capacity(BATCH);
    loop {
        ready.clear();
        match epoll::wait(events, rustix::buffer::spare_capacity(&mut ready), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("a fault thread cannot wait for faults: {error}"),
        }
        if ready.iter().any(|event| event.data.u64() == STOP.u64()) {
            return;
        }
        if let Err(error) = mirror.descriptor.read(&mut messages) {
            panic!("a fault thread cannot read faults: {error}");
        }
        if messages.is_empty() {
            continue;
        }
        tally.messages.fetch_add(messages.len() as u64, Ordering::Relaxed);
        tally.batches.fetch_add(1, Ordering::Relaxed);
        for message in messages.drain(..) {
            // Nothing else is registered, so there is no other address.
            if let Some(gpa) = mirror.gpa(message.address) {
                handler(gpa, message.access);
            }
        }
    }
}
