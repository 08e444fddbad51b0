//! An address for a network interface.

#![allow(unsafe_code, reason = "ioctls of a socket, which no crate of the tree has")]

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// `ADDRESS/BITS` as the address and its mask.
pub(super) fn parse(text: &str) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let (address, bits) = text.split_once('/')?;
    let bits = bits.parse::<u32>().ok().filter(|&bits| bits <= 32)?;
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    Some((address.parse().ok()?, Ipv4Addr::from(mask)))
}

/// Gives it to `interface`, and brings that up.
pub(super) fn assign(interface: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    // Any socket leads to the interfaces.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: zeroes are a request of no name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    let ask = |what, request: &mut libc::ifreq| {
        // SAFETY: the request is one of those that the kernel expects with `what`, and lives during the call.
        match unsafe { libc::ioctl(socket.as_raw_fd(), what, request as *mut libc::ifreq) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    request.ifr_ifru.ifru_addr = inet(address);
    ask(libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = inet(mask);
    ask(libc::SIOCSIFNETMASK, &mut request)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ask(libc::SIOCSIFFLAGS, &mut request)
}

fn inet(address: Ipv4Addr) -> libc::sockaddr {
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes that begin with the family, which says what the rest is.
    unsafe { std::mem::transmute(inet) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_mask() {
        for (text, address, mask) in [
            ("10.0.0.2/24", "10.0.0.2", "255.255.255.0"),
            ("1.2.3.4/32", "1.2.3.4", "255.255.255.255"),
            ("1.2.3.4/0", "1.2.3.4", "0.0.0.0"),
        ] {
            assert_eq!(parse(text), Some((address.parse().unwrap(), mask.parse().unwrap())));
        }
        for bad in ["", "10.0.0.2", "10.0.0/24", "10.0.0.2/33", "10.0.0.2/x", "a/24"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
