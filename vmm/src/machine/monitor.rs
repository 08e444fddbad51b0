//! What the main thread does while the vCPUs run: it passes input on, heeds signals, and notices a guest
//! that sleeps for ever.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use devices::serial::Serial;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::vcpu::{Ending, Progress, Stage};

use super::console::{Keyboard, Typed};
use super::signals::Signals;
use super::threads::Threads;

/// How often idle vCPUs are asked whether they sleep for ever: often enough for a person who waits, seldom
/// enough to cost nothing.
const SLEEP_CHECK: Duration = Duration::from_millis(500);
/// How soon a full input queue is looked at again.
const INPUT_RETRY: Duration = Duration::from_millis(2);

/// The main thread's view of a running machine.
#[derive(Debug)]
pub(super) struct Monitor<'a> {
    pub(super) stage: &'a Stage,
    pub(super) threads: &'a Threads,
    pub(super) signals: &'a Signals,
    pub(super) progress: &'a [Arc<Progress>],
    pub(super) serial: &'a Mutex<Serial>,
    pub(super) takes_input: bool,
    pub(super) has_irqchip: bool,
}

impl Monitor<'_> {
    /// Returns when the run has ended.
    pub(super) fn watch(&self) {
        // A standard input that cannot be had is one that says nothing.
        let mut keyboard = if self.takes_input { Keyboard::take().ok() } else { None };
        let mut last_exits: Vec<u64> = Vec::new();
        let mut next_check = Instant::now() + SLEEP_CHECK;
        while self.stage.ending().is_none() {
            let room = self.room();
            let wait = if keyboard.is_some() && room == 0 {
                INPUT_RETRY
            } else {
                next_check.saturating_duration_since(Instant::now())
            };
            let listening = keyboard.is_some() && room > 0;
            let ready = self.wait(listening, wait);
            if ready.signal {
                self.heed_signal();
            }
            if ready.input
                && let Some(typing) = &mut keyboard
            {
                match typing.read(room) {
                    Typed::Bytes(bytes) => self.enqueue(&bytes),
                    Typed::Escape => self.stage.end(Ending::Escape),
                    Typed::End => keyboard = None,
                }
            }
            if Instant::now() >= next_check {
                next_check = Instant::now() + SLEEP_CHECK;
                self.look_for_sleepers(&mut last_exits);
            }
        }
    }

    fn wait(&self, listening: bool, wait: Duration) -> Ready {
        let stdin = std::io::stdin();
        let mut sources = vec![
            PollFd::new(self.stage.bell(), PollFlags::IN),
            PollFd::new(&self.signals.inbox, PollFlags::IN),
        ];
        if listening {
            sources.push(PollFd::new(&stdin, PollFlags::IN));
        }
        let wait = Timespec::try_from(wait).ok();
        // Interrupted is as good as timed out: the caller looks at everything again.
        let _ = poll(&mut sources, wait.as_ref());
        let is_ready =
            |index: usize| sources.get(index).is_some_and(|source| !source.revents().is_empty());
        Ready { signal: is_ready(1), input: is_ready(2) }
    }

    fn heed_signal(&self) {
        let mut number = [0];
        if rustix::io::read(&self.signals.inbox, &mut number).is_ok_and(|count| count == 1) {
            self.stage.end(Ending::Signal(number[0].into()));
        }
    }

    /// Ends the run when every vCPU has answered that it sleeps for ever. With an interrupt controller in
    /// the kernel, a halted vCPU never comes back to tell.
    fn look_for_sleepers(&self, last_exits: &mut Vec<u64>) {
        if !self.has_irqchip {
            return;
        }
        if self.progress.iter().all(|vcpu| vcpu.is_asleep()) {
            self.stage.end(Ending::Halted);
            return;
        }
        let exits: Vec<u64> = self.progress.iter().map(|vcpu| vcpu.exits()).collect();
        for (index, vcpu) in self.progress.iter().enumerate() {
            // Who comes out by itself is not asleep. An answer costs an exit, hence the allowance.
            let idle = last_exits.get(index).is_some_and(|&last| exits[index] <= last + 1);
            if idle {
                vcpu.ask();
                self.threads.kick_one(index);
            }
        }
        *last_exits = exits;
    }

    /// How much input the guest can take; none while a vCPU is writing, perhaps to a reader that does not
    /// read: the monitor must not wait for that.
    fn room(&self) -> usize {
        match self.serial.try_lock() {
            Ok(serial) => serial.fifo_capacity(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().fifo_capacity(),
            Err(TryLockError::WouldBlock) => 0,
        }
    }

    fn enqueue(&self, bytes: &[u8]) {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner).enqueue(bytes);
    }
}

/// What woke the monitor.
struct Ready {
    signal: bool,
    input: bool,
}
