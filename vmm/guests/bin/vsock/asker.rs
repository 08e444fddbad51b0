//! Connects to a program of the host that sends back what it gets, several times at once, and checks what comes.

use alloc::vec;
use alloc::vec::Vec;

use rt::permutation::hash;
use rt::println;
use rt::tsc::{self, Frequency};
use rt::virtio::Failure;
use virtio_drivers::device::socket::{DisconnectReason, VsockEventType};

use crate::line::{Line, Link};

/// The first connection's port; the others' come behind it.
const FIRST_PORT: u32 = 1024;

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Asked,
    Sending,
    /// All is sent.
    Waiting,
    /// Closed on this side.
    Closing,
    Over,
}

struct Asker {
    link: Link,
    number: u64,
    phase: Phase,
    wrong: u64,
    /// The host refused or ended it.
    cut: bool,
}

/// Sends `bytes` on each of `connections` to `port`, `size` in a packet; whether all came back as they were.
pub(crate) fn ask(
    mut line: Line,
    frequency: Frequency,
    port: u32,
    connections: usize,
    bytes: u64,
    size: usize,
) -> Result<bool, Failure> {
    let start = tsc::now();
    let mut askers = Vec::with_capacity(connections);
    for (number, own) in (0..connections as u64).zip(FIRST_PORT..) {
        let link = line.connect(own, port)?;
        askers.push(Asker { link, number, phase: Phase::Asked, wrong: 0, cut: false });
    }
    let (mut data, mut buffer) = (Vec::new(), vec![0; size]);
    while askers.iter().any(|asker| asker.phase != Phase::Over) {
        for asker in &mut askers {
            asker.send(&mut line, bytes, &mut buffer)?;
        }
        let Some(event) = line.next(&mut data)? else { continue };
        let cid = line.cid();
        let asker = askers.iter_mut().find(|asker| asker.link.is_of(&event, cid));
        let asker = asker.ok_or(Failure::Wrong("a packet came for a connection nobody made"))?;
        asker.link.hear(&event);
        asker.take(&mut line, &event.event_type, &data, bytes)?;
    }
    let cycles = tsc::now() - start;
    let sum = |of: fn(&Asker) -> u64| askers.iter().map(of).sum::<u64>();
    let (sent, received) = (sum(|asker| asker.link.sent), sum(|asker| asker.link.received));
    let wrong = sum(|asker| asker.wrong);
    let cut = sum(|asker| asker.cut.into());
    // The last line is for programs: keys are only ever added.
    println!(
        "vsock: connections={connections} sent={sent} received={received} wrong={wrong} cut={cut} cycles={cycles} \
         bytes_per_s={}",
        frequency.per_second(sent + received, cycles).unwrap_or(0),
    );
    Ok(wrong == 0 && cut == 0 && askers.iter().all(|asker| asker.link.received == bytes))
}

impl Asker {
    /// Sends a packet, if there is anything to send and room for it.
    fn send(&mut self, line: &mut Line, bytes: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        if self.phase != Phase::Sending {
            return Ok(());
        }
        let left = (bytes - self.link.sent).min(buffer.len() as u64) as usize;
        if left > 0 {
            let buffer = &mut buffer[..left];
            (self.link.sent..).zip(&mut *buffer).for_each(|(at, byte)| *byte = self.byte(at));
            line.send(&mut self.link, buffer)?;
        }
        if self.link.sent == bytes {
            line.end(&self.link)?;
            self.phase = Phase::Waiting;
            self.close_if_done(line, bytes)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        line: &mut Line,
        event: &VsockEventType,
        data: &[u8],
        bytes: u64,
    ) -> Result<(), Failure> {
        match event {
            VsockEventType::Connected if self.phase == Phase::Asked => self.phase = Phase::Sending,
            VsockEventType::Received { .. } => {
                let first = self.link.received - data.len() as u64;
                let wrong = (first..).zip(data).filter(|&(at, &byte)| byte != self.byte(at));
                self.wrong += wrong.count() as u64;
                line.used(&mut self.link, data.len())?;
                self.close_if_done(line, bytes)?;
            }
            VsockEventType::CreditRequest => line.tell_room(&mut self.link)?,
            VsockEventType::CreditUpdate => {}
            VsockEventType::Disconnected { reason: DisconnectReason::Reset } => {
                self.cut = self.phase != Phase::Closing;
                if self.cut {
                    let what = if self.phase == Phase::Asked { "refused" } else { "reset" };
                    println!("vsock: connection {} was {what}", self.number);
                }
                self.phase = Phase::Over;
            }
            // All that the host sent has come before this.
            VsockEventType::Disconnected { .. } if self.phase != Phase::Closing => {
                line.close(&self.link)?;
                self.phase = Phase::Closing;
            }
            VsockEventType::Disconnected { .. } => {}
            VsockEventType::Connected | VsockEventType::ConnectionRequest => {
                return Err(Failure::Wrong("a packet came that does not belong to a connection"));
            }
        }
        Ok(())
    }

    fn close_if_done(&mut self, line: &mut Line, bytes: u64) -> Result<(), Failure> {
        if self.phase == Phase::Waiting && self.link.received >= bytes {
            line.close(&self.link)?;
            self.phase = Phase::Closing;
        }
        Ok(())
    }

    /// What is sent at `at`: every connection has bytes of its own.
    fn byte(&self, at: u64) -> u8 {
        (hash(self.number << 48 ^ at >> 3) >> ((at & 7) * 8)) as u8
    }
}
