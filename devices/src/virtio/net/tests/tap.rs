//! A TAP interface, in a network namespace of each test's own; on a machine that has both.
#![allow(
    unsafe_code,
    reason = "a namespace for a thread, and what sockets and interfaces are set up with"
)]

use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::{io, mem, thread};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;
use crate::virtio::net::host::{Offloads, Tap, TapError};

/// For experiments (RFC 5342): the kernel sends nothing of the kind by itself.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const GUEST_CSUM: u64 = 1 << 1;

/// Runs `test` where no interface is anybody else's, or says why not.
fn alone(test: impl FnOnce() + Send + 'static) {
    let tested = thread::spawn(move || {
        // SAFETY: a network namespace is no business of the standard library's; the thread ends with it.
        match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            Ok(()) => {}
            Err(error) => return ::tests::skip(&format!("no network namespace: {error}")),
        }
        match Tap::open("probe", 1) {
            Ok(_) => test(),
            Err(error @ (TapError::NoDevice(_) | TapError::NotPermitted { .. })) => {
                ::tests::skip(&error.to_string());
            }
            Err(error) => panic!("{error}"),
        }
    });
    if let Err(panic) = tested.join() {
        std::panic::resume_unwind(panic);
    }
}

fn request(name: &str, ifr_ifru: libc::__c_anonymous_ifr_ifru) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    libc::ifreq { ifr_name, ifr_ifru }
}

/// Gives the interface `name` an address, 10.0.0.1/8, and brings it up.
fn bring_up(name: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([10, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of plain data; a `sockaddr_in` is a `sockaddr`.
    let ifru_addr = unsafe { mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    let ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    for (number, what) in [
        (libc::SIOCSIFADDR, libc::__c_anonymous_ifr_ifru { ifru_addr }),
        (libc::SIOCSIFFLAGS, libc::__c_anonymous_ifr_ifru { ifru_flags }),
    ] {
        let request = request(name, what);
        // SAFETY: both numbers take this structure.
        let set = unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw const request) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }
}

/// A socket that sends and receives whole frames at the interface `name`.
fn raw(name: &str) -> OwnedFd {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None).unwrap();
    let index = rustix::net::netdevice::name_to_index(&socket, name).unwrap();
    // SAFETY: zeroes are a `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let len = size_of_val(&address) as u32;
    // SAFETY: the address is of this family and length.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket
}

/// The next frame of `socket` of which `is_it`.
fn take(socket: &OwnedFd, is_it: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 17];
    loop {
        let (len, _) = rustix::net::recv(socket, &mut bytes[..], RecvFlags::empty()).ok()?;
        if is_it(&bytes[..len]) {
            return Some(bytes[..len].to_vec());
        }
    }
}

/// A frame of `len` bytes from the guest, or to it, without a header.
fn ours(tag: u8, len: usize) -> Vec<u8> {
    let mut bytes = frame(tag, len)[12..].to_vec();
    bytes[..6].copy_from_slice(&[0xff; 6]);
    bytes[6..12].copy_from_slice(&MAC);
    bytes[12..14].copy_from_slice(&ETHERTYPE);
    bytes
}

fn is_ours(frame: &[u8]) -> bool {
    frame[12..14] == ETHERTYPE
}

impl Rig {
    /// The next frame for `pair` of which `is_it`; the buffers of the others, and its own, are put again.
    fn received_by(&mut self, pair: u16, len: u32, is_it: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        loop {
            let (frame, buffers) = self.received(pair);
            self.post_and_kick(pair, buffers.into(), len);
            if is_it(&frame[12..]) {
                return frame;
            }
        }
    }
}

#[test]
fn frames_go_both_ways_through_a_tap_interface() {
    alone(|| {
        let tap = Tap::open("tap0", 1).unwrap();
        bring_up("tap0");
        let socket = raw("tap0");
        let mut rig = Rig::new(Box::new(tap), 0, 64);
        rig.post_and_kick(0, 64, 2048);
        for round in 0..200_u16 {
            let out = ours(round as u8, 60 + usize::from(round) * 7);
            let mut sent = vec![0; 12];
            sent.extend_from_slice(&out);
            rig.send(0, &sent, &[12, 14]);
            rig.driver.kick(1);
            rig.sent(0);
            assert!(rig.wait(|_| take(&socket, is_ours)) == out, "{round}");
            rustix::net::send(&socket, &out, SendFlags::empty()).unwrap();
            let got = rig.received_by(0, 2048, is_ours);
            assert!(got[12..] == out, "{round}");
        }
        assert_eq!((rig.count("tx_dropped"), rig.count("rx_dropped")), (0, 0));
    });
}

/// A datagram of `payload` from the host to everybody at the interface, `segment` bytes in a frame.
fn broadcast(payload: &[u8], segment: libc::c_int) {
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    let len = size_of_val(&segment) as u32;
    let value = (&raw const segment).cast();
    // SAFETY: the option takes a pointer to an int.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, len)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
    socket.send_to(payload, "10.255.255.255:4242").unwrap();
}

fn is_datagram(frame: &[u8]) -> bool {
    frame.len() > 42 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == [0x10, 0x92]
}

#[test]
fn a_driver_that_takes_large_frames_gets_them_with_what_is_left_to_do() {
    alone(|| {
        let tap = Tap::open("tap0", 1).unwrap();
        let Offloads { checksum, tso4, tso6, uso } = crate::virtio::net::host::Host::offloads(&tap);
        assert!(checksum && tso4 && tso6);
        bring_up("tap0");
        let mut rig = Rig::new(Box::new(tap), 0, 64);
        rig.post_and_kick(0, 64, 4096);
        let payload = frame(5, 20000);
        broadcast(&payload, 1400);
        let got = rig.received_by(0, 4096, is_datagram);
        // NEEDS_CSUM, of the UDP header behind Ethernet and IPv4.
        assert_eq!((got[0] & 1, &got[6..10]), (1, &[34, 0, 6, 0][..]));
        if uso {
            assert_eq!((got[1], u16::from_le_bytes([got[4], got[5]])), (5, 1400));
            assert!(got[12 + 42..] == payload);
        }

        // The next driver wants nothing of the kind: the host does the work.
        rig.bring_up(GUEST_CSUM, 64);
        rig.post_and_kick(0, 64, 4096);
        broadcast(&payload, 1400);
        let mut whole = Vec::new();
        while whole.len() < payload.len() {
            let got = rig.received_by(0, 4096, is_datagram);
            assert_eq!((got[0] & 1, got[1], got.len() <= 12 + 1514), (0, 0, true));
            whole.extend_from_slice(&got[12 + 42..]);
        }
        assert!(whole == payload);
    });
}

#[test]
fn a_segment_that_the_host_is_to_cut_arrives_there_whole() {
    alone(|| {
        let tap = Tap::open("tap0", 1).unwrap();
        bring_up("tap0");
        let socket = raw("tap0");
        let mut rig = Rig::new(Box::new(tap), 0, 16);
        // TCP over IPv4: NEEDS_CSUM, GSO_TCPV4, headers of 54 bytes, segments of 1000, the checksum at 34 + 16.
        let mut sent = frame(7, 54 + 8000);
        sent[..10].copy_from_slice(&[1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0]);
        let total = (20 + 20 + 8000_u16).to_be_bytes();
        let head = &mut sent[12..12 + 54];
        head.fill(0);
        head[..6].copy_from_slice(&[0xff; 6]);
        head[6..12].copy_from_slice(&MAC);
        head[12..15].copy_from_slice(&[8, 0, 0x45]);
        head[16..18].copy_from_slice(&total);
        head[22..24].copy_from_slice(&[64, 6]);
        head[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
        head[46..48].copy_from_slice(&[0x50, 0x10]);
        rig.send(0, &sent, &[12 + 54]);
        // A header that lies is the interface's to refuse.
        let mut lie = sent.clone();
        lie[6] = 0xff;
        lie[7] = 0xff;
        rig.send(0, &lie, &[]);
        rig.send(0, &[0; 12 + 5], &[]);
        rig.driver.kick(1);
        (0..3).for_each(|_| rig.sent(0));
        let is_tcp = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 6 && frame[26] == 10;
        let got = rig.wait(|_| take(&socket, is_tcp));
        assert!(got[54..] == sent[12 + 54..]);
        assert_eq!((rig.count("tx_packets"), rig.count("tx_dropped")), (1, 2));
        assert_eq!(rig.device.report().broken, None);
    });
}

#[test]
fn pairs_of_queues_are_attached_and_detached() {
    alone(|| {
        let tap = Tap::open("tap0", 3).unwrap();
        bring_up("tap0");
        let socket = raw("tap0");
        let mut rig = Rig::new(Box::new(tap), 0, 64);
        for pairs in [3, 1, 2, 3, 1, 1] {
            assert_eq!(rig.ask(6, &[4, 0, pairs, 0]), 0);
            for pair in 0..pairs.into() {
                let mut sent = vec![0; 12];
                sent.extend(ours(pair as u8, 100));
                rig.send(pair, &sent, &[]);
                rig.driver.kick(2 * pair + 1);
                rig.sent(pair);
                assert!(rig.wait(|_| take(&socket, is_ours)) == sent[12..]);
            }
            // By which of them a frame comes is the host's affair; it is one that is in use.
            for pair in 0..pairs.into() {
                while rig.posted[usize::from(2 * pair)].len() < 64 {
                    rig.post(pair, 1, 2048);
                }
                rig.driver.kick(2 * pair);
            }
            rustix::net::send(&socket, &ours(9, 200), SendFlags::empty()).unwrap();
            let got = rig.wait(|rig| {
                let got = (0..pairs.into()).find_map(|pair| rig.buffer(pair))?;
                is_ours(&got[12..]).then_some(got)
            });
            assert!(got[12..] == ours(9, 200));
        }
        assert_eq!(rig.count("tx_dropped"), 0);
    });
}

#[test]
fn an_interface_that_is_down_loses_frames_and_one_that_was_deleted_breaks_the_device() {
    alone(|| {
        let tap = Tap::open("tap0", 1).unwrap();
        let mut rig = Rig::new(Box::new(tap), 0, 64);
        let mut sent = vec![0; 12];
        sent.extend(ours(1, 100));
        rig.send(0, &sent, &[]);
        rig.driver.kick(1);
        rig.sent(0);
        assert_eq!((rig.count("tx_dropped"), rig.device.report().broken), (1, None));
        bring_up("tap0");
        rig.send(0, &sent, &[]);
        rig.driver.kick(1);
        rig.sent(0);
        assert_eq!(rig.count("tx_packets"), 1);
        rig.post_and_kick(0, 64, 2048);
        delete("tap0");
        let why = rig.breaks();
        assert!(why.contains("the interface has gone"), "{why}");
        let wakes = rig.count("wakes");
        a_moment();
        assert_eq!(rig.count("wakes"), wakes);
    });
}

/// Deletes the interface `name`, whoever has it.
fn delete(name: &str) {
    let kind = AddressFamily::NETLINK;
    let socket = rustix::net::socket(kind, SocketType::RAW, None).unwrap();
    let index = rustix::net::netdevice::name_to_index(socket.as_fd(), name).unwrap();
    // RTM_DELLINK, asked for with an answer: a `nlmsghdr`, and an `ifinfomsg`.
    let mut words = [0_u32; 8];
    words[0] = 32;
    words[1] =
        u32::from(libc::RTM_DELLINK) | ((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u32) << 16;
    words[5] = index;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    rustix::net::send(&socket, &bytes, SendFlags::empty()).unwrap();
    let mut answer = [0; 256];
    rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty()).unwrap();
    assert_eq!(answer[16..20], [0; 4], "the interface is deleted");
}

#[test]
fn an_interface_that_cannot_be_had_is_refused_with_the_reason() {
    alone(|| {
        let tap = Tap::open("fifteen-letters", 1).unwrap();
        assert_eq!(tap.name(), "fifteen-letters");
        let says = |name, queues| Tap::open(name, queues).unwrap_err();
        assert!(matches!(says("fifteen-letters", 1), TapError::Busy { .. }));
        assert!(matches!(says("fifteen-letters", 2), TapError::Kind { .. }));
        assert!(matches!(says("lo", 1), TapError::Kind { .. }));
        assert!(matches!(says("tap0", 0), TapError::Queues { .. }));
        assert!(matches!(says("tap0", 257), TapError::Queues { .. }));
        for name in ["", "sixteen-letters-", "tap%d", "a/b", "a b"] {
            let error = says(name, 1);
            assert!(matches!(error, TapError::Name { .. }), "{error}");
        }
        drop(tap);
        Tap::open("fifteen-letters", 2).unwrap();
    });
}
