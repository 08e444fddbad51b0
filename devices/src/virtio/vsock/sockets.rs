//! What happens at the host's sockets.

use std::os::fd::AsFd;

use crate::dma::Dma;
use crate::virtio::watch::{Interest, Watch, hung_up};

use super::connection::{Connection, Phase, Ports};
use super::host::{Greeting, greeting};
use super::wire::Op;
use super::{Life, STREAMS, Vsock};

/// Programs that are let in at once.
const AT_ONCE: u32 = 16;

impl<D: Dma> Vsock<D> {
    /// Lets programs in.
    pub(super) fn answer_door(&mut self, watch: &Watch) {
        if self.life != Life::Running {
            return;
        }
        for _ in 0..AT_ONCE {
            if self.table.is_full() {
                break;
            }
            let stream = match self.host.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.counts.failed += 1;
                    return;
                }
            };
            let nowhere = Ports { guest: 0, host: 0 };
            let slot = self.table.insert(|slot| {
                let phase = Phase::Greeting(Vec::new());
                Connection::new(nowhere, phase, stream, Interest::new(STREAMS + slot))
            });
            if let Some(slot) = slot {
                self.settle(slot, watch);
            }
        }
        // Others may wait: watched anew, they are told again.
        let _ = self.door.set(watch, None);
    }

    /// The stream of the connection at `slot` can be read, or written, or has been closed; or could a moment ago.
    pub(super) fn stream_ready(&mut self, slot: u32, watch: &Watch) {
        let running = self.life == Life::Running;
        let Some(connection) = self.table.get(slot) else { return };
        match &mut connection.phase {
            Phase::Greeting(line) if running => match greeting(&connection.stream, line) {
                Greeting::Unfinished => {}
                Greeting::Connect(port) => return self.ask(slot, port, watch),
                Greeting::Wrong => {
                    self.counts.refused += 1;
                    return self.forget(slot, watch);
                }
            },
            Phase::Asked if running && hung_up(connection.stream.as_fd()) => {
                return self.end(slot, watch);
            }
            Phase::Open | Phase::Lingering => {
                match connection.backlog.flush(connection.stream.as_fd()) {
                    Ok(went) => connection.forwarded(went),
                    Err(_) => connection.deafen(),
                }
                if connection.is_silent() {
                    if !connection.is_deaf() && hung_up(connection.stream.as_fd()) {
                        connection.deafen();
                    }
                } else if running {
                    connection.readable = connection.is_known();
                }
            }
            _ => {}
        }
        self.settle(slot, watch);
    }

    /// A program of the host wants to go to `port` of the guest.
    fn ask(&mut self, slot: u32, port: u32, watch: &Watch) {
        let ports = self.table.ports_to(port);
        if let Some(connection) = self.table.get(slot) {
            self.counts.by_host += 1;
            (connection.ports, connection.phase) = (ports, Phase::Asked);
            connection.tell(Op::Request);
            self.table.name(slot);
            self.settle(slot, watch);
        }
    }
}
