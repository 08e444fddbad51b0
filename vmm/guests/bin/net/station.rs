//! A host on the wire: it answers who asks for its address and whoever sends it an echo request.

use rt::packet::{self, BROADCAST, Body, Host, Ip, Packet};
use rt::tsc::Frequency;
use rt::virtio::Failure;

use crate::wire::Wire;

/// Milliseconds between two questions for the same address, and how many there are.
const ASK: (u64, u64) = (200, 25);

pub(crate) struct Station {
    pub(crate) wire: Wire,
    pub(crate) me: Host,
    pub(crate) frequency: Frequency,
    /// The UDP port whose datagrams are sent back.
    pub(crate) echo: Option<u16>,
    /// Echoes and datagrams that were sent back.
    pub(crate) answered: u64,
}

impl Station {
    /// Takes a packet for this host, if one is there, answers what it asks for, and has `look` look at it.
    pub(crate) fn turn<T>(
        &mut self,
        look: impl FnOnce(&Packet<'_>) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some(frame) = self.wire.receive()? else {
            core::hint::spin_loop();
            return Ok(None);
        };
        let packet = packet::parse(frame.bytes()).filter(|packet| packet.to == self.me.ip);
        let mut seen = None;
        if let Some(packet) = &packet {
            self.answer(packet)?;
            seen = look(packet);
        }
        self.wire.recycle(frame)?;
        Ok(seen)
    }

    pub(crate) fn send(&mut self, to: Host, body: Body<'_>) -> Result<(), Failure> {
        let me = self.me;
        self.wire.send(|frame| packet::build(frame, me, to, body))
    }

    fn answer(&mut self, packet: &Packet<'_>) -> Result<(), Failure> {
        let answer = match packet.body {
            Body::WhoHas(_) => Body::IsAt,
            Body::Echo { request: true, id, sequence, data } => {
                self.answered += 1;
                Body::Echo { request: false, id, sequence, data }
            }
            Body::Udp { from, to, data } if self.echo == Some(to) => {
                self.answered += 1;
                Body::Udp { from: to, to: from, data }
            }
            _ => return Ok(()),
        };
        self.send(packet.from, answer)
    }

    /// Finds out where `ip` is.
    pub(crate) fn resolve(&mut self, ip: Ip) -> Result<Host, Failure> {
        let (pause, times) = ASK;
        for _ in 0..times {
            self.send(Host { mac: BROADCAST, ip }, Body::WhoHas(ip))?;
            let patience = self.frequency.after(pause);
            while !patience.passed() {
                // Whatever it sends tells its address.
                if let Some(host) = self.turn(|p| (p.from.ip == ip).then_some(p.from))? {
                    return Ok(host);
                }
            }
        }
        Err(Failure::Wrong("nobody answers for the address, in 5 s"))
    }
}
