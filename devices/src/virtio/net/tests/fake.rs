//! An interface that is none: a pair of sockets for each pair of queues.
#![allow(unsafe_code, reason = "moves frames by address, as an interface does")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use crate::virtio::net::host::{Host, Offloads, Unmoved};

/// What a device asked of its host.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) offloads: Offloads,
    pub(super) pairs: u16,
    /// Whether the host refuses to use another number of pairs.
    pub(super) stubborn: bool,
}

/// The far side of the sockets.
pub(super) struct Fake {
    far: Vec<OwnedFd>,
    near: Vec<OwnedFd>,
    pub(super) asked: Arc<Mutex<Asked>>,
}

#[derive(Debug)]
pub(super) struct FakeHost {
    near: Vec<OwnedFd>,
    asked: Arc<Mutex<Asked>>,
}

impl Fake {
    pub(super) fn new(pairs: u16) -> Fake {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let pair = |_| socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let (near, far) = (0..pairs).map(pair).unzip();
        Fake { near, far, asked: Arc::default() }
    }

    /// The near side. Those of several devices, one after the other, are the same.
    pub(super) fn host(&self) -> FakeHost {
        let near = self.near.iter().map(|fd| fd.try_clone().unwrap()).collect();
        FakeHost { near, asked: Arc::clone(&self.asked) }
    }

    pub(super) fn give(&self, pair: usize, frame: &[u8]) {
        let sent = send(&self.far[pair], frame, SendFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// The next frame that came out.
    pub(super) fn take(&self, pair: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let (len, _) = recv(&self.far[pair], &mut bytes[..], RecvFlags::empty()).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }
}

fn moved(result: isize) -> Result<usize, Unmoved> {
    usize::try_from(result).map_err(|_| {
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Unmoved::NotYet,
            Some(libc::EPIPE | libc::ECONNRESET) => Unmoved::Gone(error),
            _ => Unmoved::Frame(error),
        }
    })
}

impl Host for FakeHost {
    fn pairs(&self) -> u16 {
        self.near.len() as u16
    }

    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true, uso: true }
    }

    fn leave(&mut self, offloads: Offloads) -> io::Result<()> {
        self.asked.lock().unwrap().offloads = offloads;
        Ok(())
    }

    fn use_pairs(&mut self, pairs: u16) -> io::Result<()> {
        let mut asked = self.asked.lock().unwrap();
        if asked.stubborn {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        asked.pairs = pairs;
        Ok(())
    }

    fn event(&self, pair: u16) -> RawFd {
        self.near[usize::from(pair)].as_raw_fd()
    }

    unsafe fn send(&mut self, pair: u16, buffers: &[libc::iovec]) -> Result<(), Unmoved> {
        let count = buffers.len() as i32;
        // SAFETY: obligation 1 is the caller's.
        moved(unsafe { libc::writev(self.event(pair), buffers.as_ptr(), count) }).map(drop)
    }

    unsafe fn receive(&mut self, pair: u16, buffers: &[libc::iovec]) -> Result<usize, Unmoved> {
        let count = buffers.len() as i32;
        // SAFETY: obligation 1 is the caller's.
        match moved(unsafe { libc::readv(self.event(pair), buffers.as_ptr(), count) })? {
            0 => Err(Unmoved::Gone(io::ErrorKind::UnexpectedEof.into())),
            bytes => Ok(bytes),
        }
    }

    fn mtu(&self) -> Option<u16> {
        Some(1500)
    }
}
