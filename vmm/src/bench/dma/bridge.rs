//! Two TAP interfaces on a bridge, in a network namespace of this thread's own.
#![allow(
    unsafe_code,
    reason = "a namespace for a thread, and the system calls that set interfaces up"
)]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use devices::virtio::net::host::Tap;
use rustix::thread::{UnshareFlags, unshare_unsafe};

const BRIDGE: &str = "slat-br";
/// Its ports.
const PORTS: [&str; 2] = ["slat-a", "slat-b"];

/// The two ends of the cable. They go with the thread's namespace.
pub(super) struct Bridge {
    pub(super) taps: [Tap; 2],
}

impl Bridge {
    /// Moves this thread to a namespace of its own and sets them up there.
    ///
    /// # Errors
    /// The host does not let it, or has none of them.
    pub(super) fn new() -> io::Result<Bridge> {
        // SAFETY: a network namespace is no business of the standard library's; nothing but this thread is in it.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let open = |name| Tap::open(name, 1).map_err(io::Error::other);
        let taps = [open(PORTS[0])?, open(PORTS[1])?];
        let name = request(BRIDGE, libc::__c_anonymous_ifr_ifru { ifru_flags: 0 }).ifr_name;
        // SAFETY: the number takes a name, which lives until the call returns.
        call(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDBR, name.as_ptr()) })?;
        for port in PORTS {
            let index = rustix::net::netdevice::name_to_index(&socket, port)?;
            let ifru_ifindex = index.cast_signed();
            ioctl(&socket, SIOCBRADDIF, BRIDGE, libc::__c_anonymous_ifr_ifru { ifru_ifindex })?;
        }
        let ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        for name in PORTS.into_iter().chain([BRIDGE]) {
            ioctl(&socket, libc::SIOCSIFFLAGS, name, libc::__c_anonymous_ifr_ifru { ifru_flags })?;
        }
        Ok(Bridge { taps })
    }
}

/// `linux/sockios.h`: adds a bridge, and a port to it.
const SIOCBRADDBR: libc::Ioctl = 0x89a0;
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

fn request(name: &str, ifr_ifru: libc::__c_anonymous_ifr_ifru) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    libc::ifreq { ifr_name, ifr_ifru }
}

fn ioctl(
    socket: &UdpSocket,
    number: libc::Ioctl,
    name: &str,
    what: libc::__c_anonymous_ifr_ifru,
) -> io::Result<()> {
    let request = request(name, what);
    // SAFETY: the numbers that come here take this structure, which lives until the call returns.
    call(unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw const request) })
}

fn call(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
