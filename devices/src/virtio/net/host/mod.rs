//! The host's side of a network device: where frames come from and go to.
//!
//! A frame goes with its header, `struct virtio_net_hdr_v1`, in both directions. It moves between pinned frames and the
//! kernel by one system call, and nowhere else.
#![allow(unsafe_code, reason = "frames are sent from memory and received to it by address")]

mod tap;

use std::io;
use std::os::fd::RawFd;

pub use tap::{Tap, TapError};

/// Work that one side leaves to the other, by what a frame may be like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It lacks its checksum.
    pub checksum: bool,
    /// It is a TCP segment over IPv4 that is larger than the MTU.
    pub tso4: bool,
    /// Over IPv6.
    pub tso6: bool,
    /// It is a UDP datagram made of several.
    pub uso: bool,
}

/// Why a frame was not moved.
#[derive(Debug)]
pub enum Unmoved {
    /// There is none, or no room for it: not yet.
    NotYet,
    /// Something is wrong with this one; it is lost.
    Frame(io::Error),
    /// There will be no other: the interface has gone.
    Gone(io::Error),
}

/// Queues of frames, a pair (one to the guest, one from it) behind each file.
pub trait Host: std::fmt::Debug + Send {
    /// Pairs of queues.
    fn pairs(&self) -> u16;

    /// What it can do for a guest, and for which it can leave the same to the guest.
    fn offloads(&self) -> Offloads;

    /// Leaves `offloads` to the guest from now on, and nothing else.
    ///
    /// # Errors
    /// What the system says.
    fn leave(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Uses the first `pairs` only.
    ///
    /// # Errors
    /// What the system says.
    fn use_pairs(&mut self, pairs: u16) -> io::Result<()>;

    /// What is readable while a frame waits in `pair`, and writable while one can be sent.
    fn event(&self, pair: u16) -> RawFd;

    /// Sends the frame at `buffers`.
    ///
    /// # Safety
    /// 1. The memory of `buffers` is valid, for reading, until this returns.
    ///
    /// # Errors
    /// [`Unmoved`].
    unsafe fn send(&mut self, pair: u16, buffers: &[libc::iovec]) -> Result<(), Unmoved>;

    /// Receives a frame to `buffers`: its bytes. What does not fit is lost.
    ///
    /// # Safety
    /// 1. The memory of `buffers` is valid, for writing, until this returns.
    ///
    /// # Errors
    /// [`Unmoved`].
    unsafe fn receive(&mut self, pair: u16, buffers: &[libc::iovec]) -> Result<usize, Unmoved>;

    /// The largest payload of a frame, if it is known.
    fn mtu(&self) -> Option<u16>;

    /// Whether a cable is plugged in.
    fn is_link_up(&self) -> bool {
        true
    }
}
