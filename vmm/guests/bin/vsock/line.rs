//! The device, and what both ends of a connection do with it.

use alloc::vec::Vec;

use rt::tsc::Deadline;
use rt::virtio::{Device, Failure, Memory};
use virtio_drivers::Error;
use virtio_drivers::device::socket::{
    ConnectionInfo, SocketError, StreamShutdown, VMADDR_CID_HOST, VirtIOSocket, VsockAddr,
    VsockEvent, VsockEventType,
};

/// Bytes of a packet that comes, its header among them.
const PACKET: usize = 4096;
/// Bytes that may come on a connection before any of them is told to have been used.
pub(crate) const BUFFER: u32 = 64 << 10;

type Driver = VirtIOSocket<Memory, Device, PACKET>;

pub(crate) struct Line {
    driver: Driver,
    end: Option<Deadline>,
}

/// One connection.
pub(crate) struct Link {
    info: ConnectionInfo,
    /// Bytes that were used, and the host was not told so.
    untold: u32,
    /// The host had no room, and has not been heard of since.
    full: bool,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Line {
    pub(crate) fn new(device: Device, end: Option<Deadline>) -> Result<Line, Failure> {
        let driver = Driver::new(device)
            .map_err(Failure::at("setting the device up, with 8 descriptors a queue"))?;
        Ok(Line { driver, end })
    }

    pub(crate) fn cid(&self) -> u64 {
        self.driver.guest_cid()
    }

    /// What happens next, with the data that came; nothing, if nothing has happened yet.
    pub(crate) fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<VsockEvent>, Failure> {
        // Whatever happens: it may be the same over and over.
        if self.end.is_some_and(Deadline::passed) {
            return Err(Failure::Wrong("this is not over in vsock.seconds"));
        }
        data.clear();
        let event = self.driver.poll(|event, body| {
            data.extend_from_slice(body);
            Ok(Some(event))
        });
        let event = event.map_err(Failure::at("receive"))?;
        if let Some(event) = &event {
            let ours = event.destination.cid == self.cid();
            if !ours || event.source.cid != VMADDR_CID_HOST {
                return Err(Failure::Wrong(
                    "a packet came that is not from the host to this guest",
                ));
            }
        } else {
            core::hint::spin_loop();
        }
        Ok(event)
    }

    /// Asks for a connection from `port` to `to` of the host.
    pub(crate) fn connect(&mut self, port: u32, to: u32) -> Result<Link, Failure> {
        let link = Link::new(VsockAddr { cid: VMADDR_CID_HOST, port: to }, port);
        self.driver.connect(&link.info).map_err(Failure::at("connect"))?;
        Ok(link)
    }

    /// Accepts what `event` asks for.
    pub(crate) fn accept(&mut self, event: &VsockEvent) -> Result<Link, Failure> {
        let mut link = Link::new(event.source, event.destination.port);
        link.hear(event);
        self.driver.accept(&link.info).map_err(Failure::at("accept"))?;
        Ok(link)
    }

    /// Refuses it.
    pub(crate) fn refuse(&mut self, event: &VsockEvent) -> Result<(), Failure> {
        let link = Link::new(event.source, event.destination.port);
        self.driver.force_close(&link.info).map_err(Failure::at("refuse"))
    }

    /// Sends `bytes` if the host has room for them: whether it had.
    pub(crate) fn send(&mut self, link: &mut Link, bytes: &[u8]) -> Result<bool, Failure> {
        if link.full {
            return Ok(false);
        }
        match self.driver.send(bytes, &mut link.info) {
            Ok(()) => {
                // Every packet has the count.
                link.untold = 0;
                link.sent += bytes.len() as u64;
                Ok(true)
            }
            // The driver has asked for room.
            Err(Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => {
                link.full = true;
                Ok(false)
            }
            Err(error) => Err(Failure::Driver("send", error)),
        }
    }

    /// `bytes` of what came are used, and there is room for others.
    pub(crate) fn used(&mut self, link: &mut Link, bytes: usize) -> Result<(), Failure> {
        link.info.done_forwarding(bytes);
        link.untold += bytes as u32;
        if link.untold < BUFFER / 2 {
            return Ok(());
        }
        link.untold = 0;
        self.driver.credit_update(&link.info).map_err(Failure::at("giving room"))
    }

    /// The host asks what room it has.
    pub(crate) fn tell_room(&mut self, link: &mut Link) -> Result<(), Failure> {
        link.untold = 0;
        self.driver.credit_update(&link.info).map_err(Failure::at("giving room"))
    }

    /// Nothing more is sent.
    pub(crate) fn end(&mut self, link: &Link) -> Result<(), Failure> {
        let shut = self.driver.shutdown_with_hints(&link.info, StreamShutdown::SEND);
        shut.map_err(Failure::at("ending what is sent"))
    }

    /// Nothing more is sent or wanted: the host answers with a reset.
    pub(crate) fn close(&mut self, link: &Link) -> Result<(), Failure> {
        self.driver.shutdown(&link.info).map_err(Failure::at("close"))
    }
}

impl Link {
    fn new(peer: VsockAddr, port: u32) -> Link {
        let mut info = ConnectionInfo::new(peer, port);
        info.buf_alloc = BUFFER;
        Link { info, untold: 0, full: false, sent: 0, received: 0 }
    }

    /// Whether `event` is this connection's.
    pub(crate) fn is_of(&self, event: &VsockEvent, cid: u64) -> bool {
        event.matches_connection(&self.info, cid)
    }

    /// Takes from `event` what every packet has.
    pub(crate) fn hear(&mut self, event: &VsockEvent) {
        self.info.update_for_event(event);
        // Only this tells that the driver may ask again.
        if matches!(event.event_type, VsockEventType::CreditUpdate) {
            self.full = false;
        }
        if let VsockEventType::Received { length } = event.event_type {
            self.received += length as u64;
        }
    }
}
