//! What a device waits for on the host: files, by tokens of its own.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The first token that is a model's own; those below are its queues.
const OWN: u32 = 1 << 16;

/// What happened: which of a thread's devices it concerns, and what of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) device: u32,
    pub(super) source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The driver kicked a queue.
    Kick(u16),
    /// A file of the model.
    Own(u32),
}

impl Event {
    fn word(self) -> u64 {
        let token = match self.source {
            Source::Kick(queue) => queue.into(),
            Source::Own(token) => OWN + token,
        };
        u64::from(self.device) << 32 | u64::from(token)
    }

    pub(super) fn of(word: u64) -> Event {
        let token = word as u32;
        let source = match token.checked_sub(OWN) {
            Some(own) => Source::Own(own),
            None => Source::Kick(token as u16),
        };
        Event { device: (word >> 32) as u32, source }
    }
}

/// One device's share of its thread's `epoll`. Usable from every thread.
#[derive(Clone, Debug)]
pub struct Watch {
    epoll: Arc<Epoll>,
    device: u32,
}

impl Watch {
    pub(super) fn new(epoll: Arc<Epoll>, device: u32) -> Watch {
        Watch { epoll, device }
    }

    fn control(
        &self,
        what: ControlOperation,
        fd: RawFd,
        on: EventSet,
        source: Source,
    ) -> io::Result<()> {
        let word = Event { device: self.device, source }.word();
        self.epoll.ctl(what, fd, EpollEvent::new(on, word))
    }

    pub(super) fn add_kick(&self, fd: RawFd, queue: u16) -> io::Result<()> {
        self.control(ControlOperation::Add, fd, EventSet::IN, Source::Kick(queue))
    }

    /// Tells the model of `on` at `fd`, by `token`, until [`Watch::remove`] or until `fd` is closed.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn add(&self, fd: RawFd, token: u32, on: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd, on, Source::Own(token))
    }

    /// Changes what is told of `fd`.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn modify(&self, fd: RawFd, token: u32, on: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd, on, Source::Own(token))
    }

    /// Tells no more of `fd`. What was noticed before may still be told once.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(ControlOperation::Delete, fd, EventSet::empty(), Source::Own(0))
    }
}

/// What is told of one file at a time, kept in step with what its owner wants. It has to want nothing before the file is
/// closed.
#[derive(Debug)]
pub struct Interest {
    token: u32,
    told: Option<(RawFd, EventSet)>,
}

impl Interest {
    /// Nothing is told yet; by `token` from then on.
    pub fn new(token: u32) -> Interest {
        Interest { token, told: None }
    }

    /// Lets `watch` tell of what is wanted of a file, and of nothing else.
    ///
    /// # Errors
    /// What `epoll_ctl` says; nothing is told then.
    pub fn set(&mut self, watch: &Watch, wanted: Option<(RawFd, EventSet)>) -> io::Result<()> {
        if wanted == self.told {
            return Ok(());
        }
        let told = self.told.take();
        match (told, wanted) {
            (Some((old, _)), Some((fd, on))) if old == fd => watch.modify(fd, self.token, on)?,
            (old, new) => {
                if let Some((fd, _)) = old {
                    // It was closed: then nothing is told of it any more.
                    let _ = watch.remove(fd);
                }
                if let Some((fd, on)) = new {
                    watch.add(fd, self.token, on)?;
                }
            }
        }
        self.told = wanted;
        Ok(())
    }
}

/// Whether who was at the other end of `file` has closed it.
pub fn hung_up(file: BorrowedFd<'_>) -> bool {
    look(file, PollFlags::empty(), Duration::ZERO).intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Whether `file` takes more within `time`.
pub fn takes_more(file: BorrowedFd<'_>, time: Duration) -> bool {
    look(file, PollFlags::OUT, time).contains(PollFlags::OUT)
}

fn look(file: BorrowedFd<'_>, what: PollFlags, time: Duration) -> PollFlags {
    let mut asked = [PollFd::from_borrowed_fd(file, what)];
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    match poll(&mut asked, Some(&time)) {
        Ok(_) => asked[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_tells_device_and_source() {
        for source in
            [Source::Kick(0), Source::Kick(u16::MAX), Source::Own(0), Source::Own(1 << 20)]
        {
            let event = Event { device: 7, source };
            assert_eq!(Event::of(event.word()), event);
        }
    }
}
