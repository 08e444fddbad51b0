//! Waits for programs of the host, several at once, and sends back what each sends, until it sends no more.

use alloc::vec::Vec;

use rt::println;
use rt::virtio::Failure;
use virtio_drivers::device::socket::{DisconnectReason, VsockEvent, VsockEventType};

use crate::line::{Line, Link};

struct Echo {
    link: Link,
    /// What came and was not sent back yet. It has room for it: the host is told of more only when it has gone.
    waiting: Vec<u8>,
    /// How much of it was sent back.
    gone: usize,
    /// The host sends no more.
    last: bool,
    closed: bool,
}

/// Serves `connections` at `port`, with `size` bytes in a packet; whether all had back what they sent.
pub(crate) fn echo(
    mut line: Line,
    port: u32,
    connections: usize,
    size: usize,
) -> Result<bool, Failure> {
    println!("vsock: waiting at port {port}");
    let mut echoes: Vec<Echo> = Vec::new();
    let (mut answered, mut refused, mut cut) = (0, 0u64, 0u64);
    let (mut received, mut sent) = (0, 0);
    let mut data = Vec::new();
    while answered < connections {
        for echo in &mut echoes {
            echo.send_back(&mut line, size)?;
        }
        let Some(event) = line.next(&mut data)? else { continue };
        let cid = line.cid();
        let Some(place) = echoes.iter().position(|echo| echo.link.is_of(&event, cid)) else {
            match event.event_type {
                VsockEventType::ConnectionRequest if event.destination.port == port => {
                    let link = line.accept(&event)?;
                    let (waiting, gone) = (Vec::new(), 0);
                    echoes.push(Echo { link, waiting, gone, last: false, closed: false });
                }
                VsockEventType::ConnectionRequest => {
                    refused += 1;
                    line.refuse(&event)?;
                }
                VsockEventType::Disconnected { reason: DisconnectReason::Reset } => {}
                _ => return Err(Failure::Wrong("a packet came for a connection nobody has")),
            }
            continue;
        };
        if echoes[place].take(&mut line, &event, &data)? {
            let Echo { link, .. } = echoes.swap_remove(place);
            answered += 1;
            cut += u64::from(link.sent != link.received);
            received += link.received;
            sent += link.sent;
        }
    }
    // The last line is for programs: keys are only ever added.
    println!(
        "vsock: answered={answered} received={received} sent={sent} refused={refused} cut={cut}"
    );
    Ok(cut == 0)
}

impl Echo {
    /// Sends back what waits, as far as there is room, and closes behind the last of it.
    fn send_back(&mut self, line: &mut Line, size: usize) -> Result<(), Failure> {
        while !self.closed && self.gone < self.waiting.len() {
            let end = self.waiting.len().min(self.gone + size);
            if !line.send(&mut self.link, &self.waiting[self.gone..end])? {
                return Ok(());
            }
            line.used(&mut self.link, end - self.gone)?;
            self.gone = end;
        }
        self.waiting.clear();
        self.gone = 0;
        if self.last && !self.closed {
            line.close(&self.link)?;
            self.closed = true;
        }
        Ok(())
    }

    /// Whether the connection is over.
    fn take(&mut self, line: &mut Line, event: &VsockEvent, data: &[u8]) -> Result<bool, Failure> {
        self.link.hear(event);
        match event.event_type {
            VsockEventType::Received { .. } => self.waiting.extend_from_slice(data),
            VsockEventType::CreditRequest => line.tell_room(&mut self.link)?,
            VsockEventType::CreditUpdate => {}
            VsockEventType::Disconnected { reason: DisconnectReason::Shutdown } => self.last = true,
            VsockEventType::Disconnected { reason: DisconnectReason::Reset } => return Ok(true),
            VsockEventType::Connected | VsockEventType::ConnectionRequest => {
                return Err(Failure::Wrong("a packet came that does not belong to a connection"));
            }
        }
        Ok(false)
    }
}
