//! Packets of Ethernet, ARP, IPv4, ICMP and UDP: as much as two ends of a wire need to talk to each other.
//!
//! No options, no fragments, no padding. Checksums are written and checked; that of UDP may be absent, as RFC 768 has it.

use core::fmt;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes before the data of a UDP datagram or of an echo.
pub const HEADERS: usize = ETHERNET + IPV4 + TRANSPORT;
/// Data of a UDP datagram or of an echo, at most: 1500 bytes of IPv4.
pub const MAX_DATA: usize = 1500 - IPV4 - TRANSPORT;
/// The address of everyone.
pub const BROADCAST: Mac = Mac([0xff; 6]);

const IPV4: usize = 20;
const ARP: usize = 28;
/// The headers of UDP and of an echo are as long.
const TRANSPORT: usize = 8;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
/// Hardware is Ethernet, protocol is IPv4, addresses of 6 and 4 bytes.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// Of the word with the flags: more fragments, or not the first.
const FRAGMENT: u16 = 0x3fff;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// An IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip(pub [u8; 4]);

/// One end of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub ip: Ip,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// Who has this address?
    WhoHas(Ip),
    /// The sender has its address.
    IsAt,
    /// An echo: a request, or the reply to one.
    Echo {
        /// Whether it is a request.
        request: bool,
        /// Who asked.
        id: u16,
        /// The number of the request.
        sequence: u16,
        /// What comes back.
        data: &'a [u8],
    },
    /// A datagram.
    Udp {
        /// From this port.
        from: u16,
        /// To this one.
        to: u16,
        /// What is in it.
        data: &'a [u8],
    },
}

/// A packet as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Who sent it.
    pub from: Host,
    /// The IPv4 address that it is for.
    pub to: Ip,
    /// What it is.
    pub body: Body<'a>,
}

impl Ip {
    /// Four numbers with dots.
    pub fn parse(text: &str) -> Option<Ip> {
        let mut parts = text.split('.');
        let mut ip = [0; 4];
        for byte in &mut ip {
            *byte = parts.next()?.parse().ok()?;
        }
        parts.next().is_none().then_some(Ip(ip))
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Reads `frame`. None: something else, or broken.
pub fn parse(frame: &[u8]) -> Option<Packet<'_>> {
    let kind = word(frame, 12)?;
    let body = frame.get(ETHERNET..)?;
    match kind {
        TYPE_ARP => parse_arp(body),
        TYPE_IPV4 => parse_ipv4(Mac(bytes(frame, 6)?), body),
        _ => None,
    }
}

fn parse_arp(arp: &[u8]) -> Option<Packet<'_>> {
    let from = Host { mac: Mac(bytes(arp, 8)?), ip: Ip(bytes(arp, 14)?) };
    let to = Ip(bytes(arp, 24)?);
    let body = match (arp.starts_with(&ARP_KIND), word(arp, 6)?) {
        (true, 1) => Body::WhoHas(to),
        (true, 2) => Body::IsAt,
        _ => return None,
    };
    Some(Packet { from, to, body })
}

fn parse_ipv4(mac: Mac, datagram: &[u8]) -> Option<Packet<'_>> {
    let header = 4 * usize::from(datagram.first()? & 15);
    let len = usize::from(word(datagram, 2)?);
    let sane = datagram[0] >> 4 == 4 && header >= IPV4 && len >= header;
    if !sane || word(datagram, 6)? & FRAGMENT != 0 || sum(0, datagram.get(..header)?) != 0 {
        return None;
    }
    let (from, to) = (Ip(bytes(datagram, 12)?), Ip(bytes(datagram, 16)?));
    let inner = datagram.get(header..len)?;
    let body = match datagram[9] {
        ICMP => parse_echo(inner)?,
        UDP => parse_udp(from, to, inner)?,
        _ => return None,
    };
    Some(Packet { from: Host { mac, ip: from }, to, body })
}

fn parse_echo(icmp: &[u8]) -> Option<Body<'_>> {
    let request = match (icmp.first()?, icmp.get(1)?) {
        (&ECHO_REQUEST, 0) => true,
        (&ECHO_REPLY, 0) => false,
        _ => return None,
    };
    let (id, sequence) = (word(icmp, 4)?, word(icmp, 6)?);
    (sum(0, icmp) == 0).then_some(Body::Echo { request, id, sequence, data: icmp.get(8..)? })
}

fn parse_udp(source: Ip, target: Ip, udp: &[u8]) -> Option<Body<'_>> {
    let (from, to) = (word(udp, 0)?, word(udp, 2)?);
    let udp = udp.get(..usize::from(word(udp, 4)?))?;
    let intact = word(udp, 6)? == 0 || sum(pseudo(source, target, udp.len()), udp) == 0;
    intact.then_some(Body::Udp { from, to, data: udp.get(8..)? })
}

/// Writes a packet from `from` to `to` into `frame`; its length. The data, if any, must fit: [`MAX_DATA`], and the frame.
pub fn build(frame: &mut [u8], from: Host, to: Host, body: Body<'_>) -> usize {
    let broadcast = matches!(body, Body::WhoHas(_));
    frame[..6].copy_from_slice(if broadcast { &BROADCAST.0 } else { &to.mac.0 });
    frame[6..12].copy_from_slice(&from.mac.0);
    match body {
        Body::WhoHas(_) | Body::IsAt => build_arp(frame, from, to, if broadcast { 1 } else { 2 }),
        Body::Echo { request, id, sequence, data } => {
            let kind = if request { ECHO_REQUEST } else { ECHO_REPLY };
            let inner = build_ipv4(frame, from.ip, to.ip, ICMP, data);
            inner[..4].copy_from_slice(&[kind, 0, 0, 0]);
            put(inner, 4, id);
            put(inner, 6, sequence);
            put(inner, 2, sum(0, inner));
            HEADERS + data.len()
        }
        Body::Udp { from: source, to: target, data } => {
            let inner = build_ipv4(frame, from.ip, to.ip, UDP, data);
            put(inner, 0, source);
            put(inner, 2, target);
            put(inner, 4, inner.len() as u16);
            put(inner, 6, 0);
            let checksum = sum(pseudo(from.ip, to.ip, inner.len()), inner);
            // Zero means that there is none; all ones is the same number.
            put(inner, 6, if checksum == 0 { 0xffff } else { checksum });
            HEADERS + data.len()
        }
    }
}

fn build_arp(frame: &mut [u8], from: Host, to: Host, operation: u16) -> usize {
    put(frame, 12, TYPE_ARP);
    let arp = &mut frame[ETHERNET..ETHERNET + ARP];
    arp[..6].copy_from_slice(&ARP_KIND);
    put(arp, 6, operation);
    arp[8..14].copy_from_slice(&from.mac.0);
    arp[14..18].copy_from_slice(&from.ip.0);
    arp[18..24].copy_from_slice(if operation == 1 { &[0; 6] } else { &to.mac.0 });
    arp[24..28].copy_from_slice(&to.ip.0);
    ETHERNET + ARP
}

/// Writes the IPv4 header and the data; the header of ICMP or UDP, to be filled in, with the data behind it.
fn build_ipv4<'a>(
    frame: &'a mut [u8],
    from: Ip,
    to: Ip,
    protocol: u8,
    data: &[u8],
) -> &'a mut [u8] {
    assert!(data.len() <= MAX_DATA, "{} bytes do not fit into a packet", data.len());
    put(frame, 12, TYPE_IPV4);
    let datagram = &mut frame[ETHERNET..HEADERS + data.len()];
    let len = datagram.len() as u16;
    let (header, inner) = datagram.split_at_mut(IPV4);
    header.copy_from_slice(&[
        0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    put(header, 2, len);
    header[12..16].copy_from_slice(&from.0);
    header[16..20].copy_from_slice(&to.0);
    put(header, 10, sum(0, header));
    inner[TRANSPORT..].copy_from_slice(data);
    inner
}

/// The sum over what UDP's checksum covers besides the datagram (RFC 768).
fn pseudo(from: Ip, to: Ip, len: usize) -> u32 {
    let halves = |ip: Ip| {
        let [a, b, c, d] = ip.0;
        u32::from(u16::from_be_bytes([a, b])) + u32::from(u16::from_be_bytes([c, d]))
    };
    halves(from) + halves(to) + u32::from(UDP) + len as u32
}

/// The Internet checksum (RFC 1071) of `bytes`, behind what is summed up already; 0 if they contain their own and are intact.
fn sum(before: u32, bytes: &[u8]) -> u16 {
    let (words, last) = bytes.as_chunks::<2>();
    let words = words.iter().map(|&word| u32::from(u16::from_be_bytes(word)));
    let last = last.iter().map(|&byte| u32::from(byte) << 8);
    let mut sum = words.chain(last).fold(before, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

fn word(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_be_bytes)
}

fn put(to: &mut [u8], at: usize, value: u16) {
    to[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Host = Host { mac: Mac([2, 0, 0, 0, 0, 1]), ip: Ip([10, 0, 0, 1]) };
    const B: Host = Host { mac: Mac([2, 0, 0, 0, 0, 2]), ip: Ip([10, 0, 0, 2]) };

    fn built(body: Body<'_>) -> Vec<u8> {
        let mut frame = vec![0xa5; HEADERS + MAX_DATA];
        let len = build(&mut frame, A, B, body);
        frame.truncate(len);
        frame
    }

    fn bodies(data: &[u8]) -> [Body<'_>; 5] {
        [
            Body::WhoHas(B.ip),
            Body::IsAt,
            Body::Echo { request: true, id: 7, sequence: 9, data },
            Body::Echo { request: false, id: 0xffff, sequence: 0, data },
            Body::Udp { from: 9, to: 4000, data },
        ]
    }

    #[test]
    fn what_is_built_is_read_the_same() {
        let data: Vec<u8> = (0..MAX_DATA).map(|i| i as u8).collect();
        for len in [0, 1, 17, 56, MAX_DATA] {
            for body in bodies(&data[..len]) {
                let frame = built(body);
                assert_eq!(parse(&frame), Some(Packet { from: A, to: B.ip, body }), "{len}");
                let mut padded = frame.clone();
                padded.extend([0xa5; 30]);
                assert_eq!(parse(&padded), parse(&frame), "padding is no data");
            }
        }
    }

    /// The Ethernet header, which has no checksum here, and what ARP does not check are left out.
    #[test]
    fn no_broken_byte_goes_unnoticed_and_no_short_frame_is_read_too_far() {
        for body in &bodies(b"0123456789")[2..] {
            let frame = built(*body);
            for at in ETHERNET..frame.len() {
                let mut broken = frame.clone();
                broken[at] ^= 0x10;
                assert_ne!(parse(&broken), parse(&frame), "byte {at} of {body:?}");
            }
        }
        for body in bodies(b"0123456789") {
            let frame = built(body);
            assert!((0..frame.len()).all(|len| parse(&frame[..len]).is_none()));
        }
    }

    /// From RFC 1071's example, and a packet that a Linux host sent.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(sum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(
            sum(
                0,
                &[
                    0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1,
                    0xc0, 0xa8, 0, 0xc7
                ]
            ),
            0
        );
    }

    #[test]
    fn addresses_are_four_numbers() {
        assert_eq!(Ip::parse("10.0.0.255"), Some(Ip([10, 0, 0, 255])));
        for bad in ["", "10", "10.0.0", "10.0.0.1.2", "10.0.0.256", "10.0.0.x", "10..0.1"] {
            assert_eq!(Ip::parse(bad), None, "{bad}");
        }
        assert_eq!(A.ip.to_string(), "10.0.0.1");
        assert_eq!(A.mac.to_string(), "02:00:00:00:00:01");
    }
}
