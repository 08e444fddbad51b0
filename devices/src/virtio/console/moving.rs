//! Bytes between the queues and the port.

use std::io;

use crate::dma::{Dma, part};
use crate::virtio::model::{Io, Progress, TURN};
use crate::virtio::queue::Broken;
use crate::virtio::watch::Watch;

use super::host::Unheard;
use super::wire::{RX, TX};
use super::{Console, KEPT};

/// Bytes of one turn: a buffer may be as large as its driver says.
const TURN_BYTES: u64 = 1 << 20;

/// What became of a buffer.
enum Sent {
    /// It is done.
    Whole,
    /// The host takes no more now.
    HeldUp,
    /// The turn is over.
    Part,
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl<D: Dma> Console<D> {
    /// Sends what is in the transmit queue, until it is empty, or this turn is over, or the host takes no more.
    pub(super) fn transmit(&mut self, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        let queue = usize::from(TX);
        let (mut turn, mut bytes) = (TURN, TURN_BYTES);
        let mut used = false;
        self.held_up = false;
        let progress = 'queue: loop {
            io.queues[queue].mute(io.memory)?;
            while io.queues[queue].next(io.memory, &mut self.chain)? {
                let head = self.chain.head;
                if !self.chain.writable.is_empty() {
                    let reason = "has memory to write in what is to be sent".into();
                    return Err(Broken::Request { queue: TX, head, reason });
                }
                let sent = if turn == 0 { Sent::Part } else { self.send(&mut bytes, io)? };
                match sent {
                    Sent::Whole => {
                        self.sent = 0;
                        turn -= 1;
                        used = true;
                        io.queues[queue].add_used(io.memory, head, 0)?;
                    }
                    Sent::HeldUp => {
                        io.queues[queue].undo();
                        self.held_up = true;
                        self.counts.held_up += 1;
                        break 'queue Progress::Done;
                    }
                    Sent::Part => {
                        io.queues[queue].undo();
                        break 'queue Progress::More;
                    }
                }
            }
            if !io.queues[queue].unmute(io.memory)? {
                break Progress::Done;
            }
        };
        if used {
            io.signal(TX)?;
        }
        Ok(progress)
    }

    /// Sends what is left of the buffer in `self.chain`, `bytes` of it at most.
    fn send(&mut self, bytes: &mut u64, io: &mut Io<'_, '_, D>) -> Result<Sent, Broken> {
        let memory = |source| Broken::Memory { queue: TX, source };
        let total = self.chain.readable_bytes();
        while self.sent < total {
            let left = total - self.sent;
            let some = left.min(KEPT as u64).min(*bytes);
            if some == 0 {
                return Ok(Sent::Part);
            }
            let went = match self.port.output() {
                None => match self.port.unheard() {
                    Unheard::Lost => self.lose(left),
                    Unheard::Kept if left > KEPT as u64 => self.lose(left - KEPT as u64),
                    Unheard::Kept => {
                        self.counts.lost += self.backlog.make_room(some as usize) as u64;
                        self.keep(some, io)?
                    }
                },
                Some(file) if self.backlog.is_empty() => {
                    let written = self.transfer.write(file, &self.chain.readable, self.sent, some);
                    match written.map_err(memory)? {
                        Ok(went) if went > 0 => {
                            self.counts.output += went as u64;
                            went as u64
                        }
                        Err(error) if !would_block(&error) => {
                            self.counts.failed += 1;
                            self.close_output(io.watch);
                            continue;
                        }
                        _ => self.keep(some, io)?,
                    }
                }
                Some(_) => self.keep(some, io)?,
            };
            if went == 0 {
                return Ok(Sent::HeldUp);
            }
            self.sent += went;
            *bytes -= went.min(*bytes);
        }
        Ok(Sent::Whole)
    }

    fn lose(&mut self, bytes: u64) -> u64 {
        self.counts.lost += bytes;
        bytes
    }

    /// Keeps as many of the next `some` bytes of the buffer as have room.
    fn keep(&mut self, some: u64, io: &mut Io<'_, '_, D>) -> Result<u64, Broken> {
        let some = some.min(self.backlog.room() as u64);
        let mut segments = Vec::new();
        part(&self.chain.readable, self.sent, some, &mut segments);
        let kept = self.backlog.append(io.memory, &segments);
        kept.map_err(|source| Broken::Memory { queue: TX, source })?;
        Ok(some)
    }

    /// Lets the host have what was kept for it.
    pub(super) fn flush(&mut self, watch: &Watch) {
        let Some(file) = self.port.output() else { return };
        match self.backlog.flush(file) {
            Ok(went) => self.counts.output += went as u64,
            Err(_) => {
                self.counts.failed += 1;
                self.close_output(watch);
                if self.port.unheard() == Unheard::Lost {
                    self.counts.lost += self.backlog.clear() as u64;
                }
            }
        }
    }

    /// Sends a byte that came by the configuration space. The driver cannot be held up there.
    pub(super) fn emergency(&mut self, byte: u8, watch: &Watch) {
        if self.port.output().is_none() && self.port.unheard() == Unheard::Kept {
            self.counts.lost += self.backlog.make_room(1) as u64;
        } else if self.backlog.room() == 0 {
            self.flush(watch);
        }
        if !self.backlog.push(byte) {
            self.counts.lost += 1;
        }
        self.flush(watch);
        // If it cannot be watched, what comes next tries again.
        let _ = self.attend(watch);
    }

    /// Reads input into the receive queue's buffers, until there is no more of either, or this turn is over.
    pub(super) fn receive(&mut self, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        let queue = usize::from(RX);
        let mut turn = TURN;
        let mut used = false;
        let progress = 'queue: loop {
            io.queues[queue].mute(io.memory)?;
            while io.queues[queue].next(io.memory, &mut self.chain)? {
                let head = self.chain.head;
                if !self.chain.readable.is_empty() {
                    let reason = "has memory to read in what is to be received".into();
                    return Err(Broken::Request { queue: RX, head, reason });
                }
                let read = self
                    .port
                    .input()
                    .filter(|_| turn > 0)
                    .map(|file| self.transfer.read(file, &self.chain.writable, 0, KEPT as u64));
                let read = read.transpose();
                let read = read.map_err(|source| Broken::Memory { queue: RX, source })?;
                match read {
                    Some(Ok(came)) if came > 0 => {
                        turn -= 1;
                        used = true;
                        self.counts.input += came as u64;
                        io.queues[queue].add_used(io.memory, head, came as u32)?;
                        continue;
                    }
                    Some(Err(error)) if would_block(&error) => {}
                    Some(ended) => {
                        self.counts.failed += u64::from(ended.is_err());
                        self.close_input(io.watch);
                    }
                    None => {}
                }
                io.queues[queue].undo();
                break 'queue if turn == 0 { Progress::More } else { Progress::Done };
            }
            if !io.queues[queue].unmute(io.memory)? {
                self.wanted = false;
                break Progress::Done;
            }
        };
        if used {
            io.signal(RX)?;
        }
        Ok(progress)
    }
}
