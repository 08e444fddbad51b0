//! What the driver of a socket device sees: the configuration space, packets and events (virtio 1.2, section 5.10).

/// Stream sockets (5.10.3).
pub const F_STREAM: u64 = 1 << 0;

/// Queue of packets to the guest (5.10.2).
pub const RX: u16 = 0;
/// Queue of packets from it.
pub const TX: u16 = 1;
/// Queue of events to it.
pub const EVENT: u16 = 2;
/// Descriptors of each.
pub const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// The host's address (5.10.4).
pub const HOST_CID: u64 = 2;
/// Bytes of a packet's header (5.10.6).
pub const HEADER: usize = 44;
/// The most bytes of data in a packet to the guest.
pub const MOST: u64 = 64 << 10;

/// The type of stream sockets' packets.
pub const STREAM: u16 = 1;

/// The sender of a `SHUTDOWN` will not receive any more (5.10.6.5).
pub const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// It will not send any more.
pub const SHUTDOWN_SEND: u32 = 1 << 1;

/// The event that all connections are gone (5.10.6.7).
pub const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// What a packet says (5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "they are named as in the specification")]
pub enum Op {
    Request = 1,
    Response = 2,
    Rst = 3,
    Shutdown = 4,
    Rw = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    /// The operation of that number.
    pub fn of(number: u16) -> Option<Op> {
        Some(match number {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Rst,
            4 => Op::Shutdown,
            5 => Op::Rw,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            _ => return None,
        })
    }
}

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named as in the specification")]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    /// `type`
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// The header that `bytes` are.
    pub fn parse(bytes: &[u8; HEADER]) -> Header {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Header {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}
