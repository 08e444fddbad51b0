//! A TAP interface of Linux: what it sends comes out of a file, and what is written to the file arrives at it.
#![allow(
    unsafe_code,
    reason = "ioctls with the structures that their numbers ask for; frames by address"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libc::{c_int, c_short};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::virtio::net::wire::{HEADER, MAX_PAIRS};

use super::{Host, Offloads, Unmoved};

const DEVICE: &str = "/dev/net/tun";

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The host has no TAP interfaces.
    #[error("{DEVICE} cannot be opened, so there are no TAP interfaces: {0}")]
    NoDevice(io::Error),
    /// The caller may not.
    #[error(
        "the interface {name} may not be used: it takes CAP_NET_ADMIN, or to be its owner: {source}"
    )]
    NotPermitted {
        /// The interface.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else has it.
    #[error("the interface {name} is in use")]
    Busy {
        /// The interface.
        name: String,
    },
    /// No interface is called so.
    #[error(
        "{name:?} cannot be an interface's name: it is empty, has 16 bytes or more, or a byte that no name has"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// No interface has so many.
    #[error("a TAP interface has 1 to {MAX_PAIRS} queues, not {queues}")]
    Queues {
        /// How many were asked for.
        queues: u16,
    },
    /// It is of another kind.
    #[error(
        "the interface {name} is no TAP interface, or was made for another number of queues than {queues}: {source}"
    )]
    Kind {
        /// The interface.
        name: String,
        /// How many were asked for.
        queues: u16,
        /// What the system says.
        source: io::Error,
    },
    /// Something else.
    #[error("the interface {name} cannot be set up ({step}): {source}")]
    SetUp {
        /// The interface.
        name: String,
        /// What failed.
        step: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// A TAP interface, a file for each of its queues. One that this made goes with it.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<OwnedFd>,
    /// The first of them are attached.
    attached: u16,
    offloads: Offloads,
    mtu: Option<u16>,
}

impl Tap {
    /// Opens the interface `name`, which is made if there is none, with so many queues.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str, queues: u16) -> Result<Tap, TapError> {
        let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
        // A `%` would make the kernel choose a name.
        let odd =
            |byte: u8| byte == b'/' || byte == b'%' || byte == b':' || !byte.is_ascii_graphic();
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(odd) {
            return Err(TapError::Name { name: name.into() });
        }
        if !(1..=MAX_PAIRS).contains(&queues) {
            return Err(TapError::Queues { queues });
        }
        let files =
            (0..queues).map(|_| queue(name, queues, flags)).collect::<Result<Vec<_>, _>>()?;
        let set_up = |step| {
            let name = name.to_owned();
            move |error: Errno| TapError::SetUp { name, step, source: error.into() }
        };
        let header = HEADER as c_int;
        // SAFETY: the number takes a pointer to an int.
        let sized = unsafe {
            ioctl(&files[0], Setter::<{ libc::TUNSETVNETHDRSZ as Opcode }, _>::new(header))
        };
        sized.map_err(set_up("the size of the header"))?;
        let all = Offloads { checksum: true, tso4: true, tso6: true, uso: true };
        let older = Offloads { uso: false, ..all };
        let can = |offloads| leave(&files[0], offloads).is_ok();
        let offloads = [all, older].into_iter().find(|&offloads| can(offloads)).unwrap_or_default();
        leave(&files[0], Offloads::default()).map_err(set_up("its offloads"))?;
        let mtu = mtu(name).map_err(set_up("its MTU"))?;
        Ok(Tap { name: name.into(), queues: files, attached: queues, offloads, mtu })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn attach(&self, queue: u16, how: c_int) -> io::Result<()> {
        let request = request("", how);
        let file = &self.queues[usize::from(queue)];
        // SAFETY: the number takes a pointer to this structure.
        unsafe { ioctl(file, Setter::<{ libc::TUNSETQUEUE as Opcode }, _>::new(request)) }?;
        Ok(())
    }
}

/// Opens a queue of the interface `name`.
fn queue(name: &str, queues: u16, flags: c_int) -> Result<OwnedFd, TapError> {
    let mode = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let owned = || name.to_owned();
    let file = open(DEVICE, mode, Mode::empty()).map_err(|error| match error {
        Errno::PERM | Errno::ACCESS => {
            TapError::NotPermitted { name: owned(), source: error.into() }
        }
        _ => TapError::NoDevice(error.into()),
    })?;
    let mut request = request(name, flags);
    // SAFETY: the number takes a pointer to this structure.
    let set =
        unsafe { ioctl(&file, Updater::<{ libc::TUNSETIFF as Opcode }, _>::new(&mut request)) };
    set.map_err(|error| match error {
        Errno::PERM | Errno::ACCESS => {
            TapError::NotPermitted { name: owned(), source: error.into() }
        }
        Errno::BUSY => TapError::Busy { name: owned() },
        Errno::INVAL | Errno::TOOBIG => {
            TapError::Kind { name: owned(), queues, source: error.into() }
        }
        _ => TapError::SetUp { name: owned(), step: "its kind", source: error.into() },
    })?;
    Ok(file)
}

/// What an ioctl about the interface `name` takes.
fn request(name: &str, flags: c_int) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    // The flags fit: they are defined for this field.
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags as c_short };
    libc::ifreq { ifr_name, ifr_ifru }
}

/// Leaves `offloads` to who reads `file`.
fn leave(file: &OwnedFd, offloads: Offloads) -> Result<(), Errno> {
    let Offloads { checksum, tso4, tso6, uso } = offloads;
    let flags = [
        (checksum, libc::TUN_F_CSUM),
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        // The kernel takes both or neither.
        (uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ];
    let flags = flags.into_iter().filter(|&(on, _)| on).fold(0, |all, (_, flag)| all | flag);
    // SAFETY: the number takes an integer.
    unsafe {
        ioctl(file, IntegerSetter::<{ libc::TUNSETOFFLOAD as Opcode }>::new_usize(flags as usize))
    }
}

/// The MTU of the interface `name`.
fn mtu(name: &str) -> Result<Option<u16>, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    let mut request = request(name, 0);
    // SAFETY: the number takes a pointer to this structure.
    unsafe { ioctl(&socket, Updater::<{ libc::SIOCGIFMTU as Opcode }, _>::new(&mut request)) }?;
    // SAFETY: the ioctl succeeded, so it has written this field.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    // 5.1.4.1: a device tells of none below 68.
    Ok(u16::try_from(mtu).ok().filter(|&mtu| mtu >= 68))
}

/// What a system call moved.
fn moved(result: isize) -> Result<usize, Unmoved> {
    usize::try_from(result).map_err(|_| {
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Unmoved::NotYet,
            Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO) => Unmoved::Gone(error),
            _ => Unmoved::Frame(error),
        }
    })
}

impl Host for Tap {
    fn pairs(&self) -> u16 {
        self.queues.len() as u16
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn leave(&mut self, offloads: Offloads) -> io::Result<()> {
        Ok(leave(&self.queues[0], offloads)?)
    }

    fn use_pairs(&mut self, pairs: u16) -> io::Result<()> {
        let pairs = pairs.clamp(1, self.pairs());
        while self.attached < pairs {
            self.attach(self.attached, libc::IFF_ATTACH_QUEUE)?;
            self.attached += 1;
        }
        while self.attached > pairs {
            self.attach(self.attached - 1, libc::IFF_DETACH_QUEUE)?;
            self.attached -= 1;
        }
        Ok(())
    }

    fn event(&self, pair: u16) -> RawFd {
        self.queues[usize::from(pair)].as_raw_fd()
    }

    unsafe fn send(&mut self, pair: u16, buffers: &[libc::iovec]) -> Result<(), Unmoved> {
        let (fd, count) = (self.event(pair), buffers.len() as c_int);
        // SAFETY: obligation 1 is the caller's.
        moved(unsafe { libc::writev(fd, buffers.as_ptr(), count) }).map(drop)
    }

    unsafe fn receive(&mut self, pair: u16, buffers: &[libc::iovec]) -> Result<usize, Unmoved> {
        let (fd, count) = (self.event(pair), buffers.len() as c_int);
        // SAFETY: obligation 1 is the caller's.
        moved(unsafe { libc::readv(fd, buffers.as_ptr(), count) })
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }
}
