//! What the main thread does while the vCPUs run: it passes input on, heeds signals, and notices a guest
//! that sleeps for ever.

use std::io;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use devices::serial::Serial;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::tcgetwinsize;

use crate::vcpu::{Ending, Progress, Stage, Threads};

use super::console::{Keyboard, Typed};
use super::signals::Signals;
use super::virtio;

/// How often idle vCPUs are asked whether they sleep for ever: often enough for a person who waits, seldom
/// enough to cost nothing.
const SLEEP_CHECK: Duration = Duration::from_millis(250);
/// How much may be typed ahead of the guest, in bytes.
const TYPE_AHEAD: usize = 4096;
/// How soon a full input queue is looked at again.
const INPUT_RETRY: Duration = Duration::from_millis(2);

/// The main thread's view of a running machine.
#[derive(Debug)]
pub(super) struct Monitor<'a> {
    pub(super) stage: &'a Stage,
    pub(super) threads: &'a Threads,
    /// Where signals arrive, if they are this machine's to heed.
    pub(super) signals: Option<&'a Signals>,
    pub(super) progress: &'a [Arc<Progress>],
    pub(super) serial: &'a Mutex<Serial>,
    pub(super) virtio: &'a virtio::Served,
    /// Whether the serial port takes what is typed; else a virtio console may.
    pub(super) takes_input: bool,
    pub(super) has_irqchip: bool,
}

impl Monitor<'_> {
    /// Returns when the run has ended.
    pub(super) fn watch(&self) {
        // A standard input that cannot be had is one that says nothing.
        let listens = self.takes_input || self.virtio.keys().is_some();
        let mut keyboard = if listens { Keyboard::take().ok() } else { None };
        let mut sleep = Sleep::default();
        let mut next_check = Instant::now() + SLEEP_CHECK;
        // Typed, and not yet taken by the guest.
        let mut pending = Vec::new();
        while self.stage.ending().is_none() {
            self.pass_on(&mut pending);
            let wait = if pending.is_empty() {
                next_check.saturating_duration_since(Instant::now())
            } else {
                INPUT_RETRY
            };
            // A person must be heard even by a guest that does not listen: the escape is among the keys.
            let listening = keyboard
                .as_ref()
                .is_some_and(|keyboard| pending.len() < TYPE_AHEAD || keyboard.is_terminal());
            let ready = self.wait(listening, wait);
            if ready.signal {
                self.heed_signal();
            }
            if ready.input
                && let Some(typing) = &mut keyboard
            {
                match typing.read(TYPE_AHEAD) {
                    Typed::Bytes(bytes) => {
                        let room = TYPE_AHEAD.saturating_sub(pending.len());
                        // More than the guest takes in is dropped, as a keyboard does it; a pipe is only
                        // read while there is room.
                        let kept =
                            if typing.is_terminal() { bytes.len().min(room) } else { bytes.len() };
                        pending.extend_from_slice(&bytes[..kept]);
                    }
                    Typed::Escape => self.stage.end(Ending::Escape),
                    Typed::End => keyboard = None,
                }
            }
            if Instant::now() >= next_check {
                next_check = Instant::now() + SLEEP_CHECK;
                self.look_for_sleepers(&mut sleep);
            }
        }
    }

    fn wait(&self, listening: bool, wait: Duration) -> Ready {
        let stdin = std::io::stdin();
        let mut sources = vec![PollFd::new(self.stage.bell(), PollFlags::IN)];
        let mut add = |source| {
            sources.push(source);
            sources.len() - 1
        };
        let signal = self.signals.map(|signals| add(PollFd::new(&signals.inbox, PollFlags::IN)));
        let input = listening.then(|| add(PollFd::new(&stdin, PollFlags::IN)));
        let wait = Timespec::try_from(wait).ok();
        // Interrupted is as good as timed out: the caller looks at everything again.
        let _ = poll(&mut sources, wait.as_ref());
        let is_ready =
            |index: Option<usize>| index.is_some_and(|index| !sources[index].revents().is_empty());
        Ready { signal: is_ready(signal), input: is_ready(input) }
    }

    fn heed_signal(&self) {
        match self.signals.and_then(Signals::next) {
            Some(libc::SIGWINCH) => {
                if let Ok(size) = tcgetwinsize(io::stdout()) {
                    self.virtio.resize(size.ws_col.max(1), size.ws_row.max(1));
                }
            }
            Some(number) => self.stage.end(Ending::Signal(number)),
            None => {}
        }
    }

    /// Ends the run when every vCPU has answered twice in a row that it sleeps for ever. With an interrupt
    /// controller in the kernel, a halted vCPU never comes back to tell. Twice, because one that has
    /// answered may be started by one that answers next.
    fn look_for_sleepers(&self, sleep: &mut Sleep) {
        if !self.has_irqchip {
            return;
        }
        let all = self.progress.iter().all(|vcpu| vcpu.is_asleep());
        sleep.rounds = if all { sleep.rounds + 1 } else { 0 };
        if sleep.rounds == 2 {
            self.stage.end(Ending::Halted);
            return;
        }
        let exits: Vec<u64> = self.progress.iter().map(|vcpu| vcpu.exits()).collect();
        // Who comes out by itself is not asleep. An answer costs an exit, hence the allowance.
        let idle = |(now, then): (&u64, &u64)| now <= &(then + 1);
        let all_idle = sleep.exits.len() == exits.len() && exits.iter().zip(&sleep.exits).all(idle);
        if all_idle {
            for (index, vcpu) in self.progress.iter().enumerate() {
                vcpu.ask();
                self.threads.kick_one(index);
            }
        } else {
            sleep.rounds = 0;
        }
        sleep.exits = exits;
    }

    /// Gives the guest what it can take of what was typed. Nothing while a vCPU is writing, perhaps to a
    /// reader that does not read: the monitor must not wait for that.
    fn pass_on(&self, pending: &mut Vec<u8>) {
        if pending.is_empty() {
            return;
        }
        if let Some(keys) = self.virtio.keys() {
            // What a full pipe does not take is tried again.
            let taken = rustix::io::write(keys, pending).unwrap_or(0);
            pending.drain(..taken);
            return;
        }
        let mut serial = match self.serial.try_lock() {
            Ok(serial) => serial,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let room = serial.fifo_capacity().min(pending.len());
        let taken = if room == 0 { 0 } else { serial.enqueue(&pending[..room]) };
        pending.drain(..taken);
    }
}

/// What is known of the vCPUs' sleep.
#[derive(Default)]
struct Sleep {
    /// Exits of each at the last look.
    exits: Vec<u64>,
    /// Looks in a row at which all were asleep.
    rounds: u32,
}

/// What woke the monitor.
struct Ready {
    signal: bool,
    input: bool,
}
