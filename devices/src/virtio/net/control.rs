//! Commands of the driver (virtio 1.2, 5.1.6.5).

use vm_memory::{Bytes, GuestAddress};

use crate::dma::Dma;
use crate::virtio::model::{Io, Progress, TURN};
use crate::virtio::queue::Broken;

use super::wire::{Ack, Command};
use super::{AT_FIRST, Net, Pair};

impl<D: Dma> Net<D> {
    /// Does what is asked in `queue`.
    pub(super) fn command(
        &mut self,
        queue: u16,
        io: &mut Io<'_, '_, D>,
    ) -> Result<Progress, Broken> {
        let index = usize::from(queue);
        for _ in 0..TURN {
            if !io.queues[index].next(io.memory, &mut self.chain)? {
                if io.queues[index].unmute(io.memory)? {
                    continue;
                }
                return Ok(Progress::Done);
            }
            let head = self.chain.head;
            let bad = |reason| Broken::Request { queue, head, reason };
            let parsed = Command::parse(&self.chain, self.accepted, io.memory);
            let (command, answer) = parsed.map_err(bad)?;
            let ack = self.obey(command, io)?;
            self.counts.commands += 1;
            self.counts.commands_refused += u64::from(ack == Ack::Error);
            let written = io.memory.write_obj(ack as u8, GuestAddress(answer));
            written
                .map_err(|error| bad(format!("has an answer that cannot be written: {error}")))?;
            io.queues[index].add_used(io.memory, head, 1)?;
            io.signal(queue)?;
        }
        Ok(Progress::More)
    }

    fn obey(&mut self, command: Command, io: &mut Io<'_, '_, D>) -> Result<Ack, Broken> {
        match command {
            Command::Filter => Ok(Ack::Ok),
            Command::SetMac(mac) => {
                self.mac = mac;
                Ok(Ack::Ok)
            }
            Command::SetPairs(pairs) if (1..=self.shape.pairs).contains(&pairs) => {
                self.set_pairs(pairs, io)
            }
            Command::SetPairs(_) | Command::Refused => Ok(Ack::Error),
        }
    }

    /// Uses the first `pairs` from now on. What the driver left in the others stays there.
    fn set_pairs(&mut self, pairs: u16, io: &mut Io<'_, '_, D>) -> Result<Ack, Broken> {
        if self.host.use_pairs(pairs).is_err() {
            return Ok(Ack::Error);
        }
        let before = std::mem::replace(&mut self.used_pairs, pairs);
        for pair in pairs..before {
            // At once: a queue that is detached tells of errors.
            self.watch_in(pair, io)?;
            let pair = &mut self.pairs[usize::from(pair)];
            *pair = Pair { watched: pair.watched, ..AT_FIRST };
        }
        for pair in before..pairs {
            // Its kicks so far meant nothing.
            self.receive(pair, io)?;
            self.watch_in(pair, io)?;
            io.again(2 * pair + 1);
        }
        Ok(Ack::Ok)
    }
}
