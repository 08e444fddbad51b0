//! What the driver of a network device sees: features, the configuration space, commands (virtio 1.2, section 5.1).

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET,
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR, VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_OK,
    VIRTIO_NET_S_LINK_UP,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::dma::Segment;
use crate::virtio::queue::Chain;

use super::host::Offloads;

/// Bytes of the header before each frame, `struct virtio_net_hdr_v1` (5.1.6).
pub const HEADER: u32 = 12;
/// Where in it `num_buffers` is.
pub const NUM_BUFFERS: u32 = 10;
/// Bytes of a frame before what its MTU counts: the Ethernet header, and a VLAN tag.
const ETHERNET: u32 = 14 + 4;
/// The largest frame that a driver has to expect when segments are put together, with its header (5.1.6.3.1).
const LARGEST_RECEIVED: u32 = 65562;
/// The largest that it may send: that, and a VLAN tag.
pub const LARGEST_SENT: u64 = 65566;
/// The most pairs of queues: what a TAP takes.
pub const MAX_PAIRS: u16 = 256;
/// Entries of the control queue.
pub const CONTROL_SIZE: u16 = 64;

/// A hardware address.
pub type Mac = [u8; 6];

/// What a driver may be shown of a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pairs of queues, at least 1.
    pub pairs: u16,
    /// What the host's side does for the driver, and what it hands over if the driver takes it.
    pub offloads: Offloads,
    /// The largest payload of a frame, if the driver is told.
    pub mtu: Option<u16>,
}

impl Shape {
    /// The features of such a device.
    pub fn features(&self) -> u64 {
        let Offloads { checksum, tso4, tso6, uso } = self.offloads;
        let always = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_RX,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
        ];
        let where_there: [(bool, &[u32]); 6] = [
            (checksum, &[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM]),
            (checksum && tso4, &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4]),
            (checksum && tso6, &[VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_GUEST_TSO6]),
            (
                checksum && uso,
                &[VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6],
            ),
            (self.mtu.is_some(), &[VIRTIO_NET_F_MTU]),
            (self.pairs > 1, &[VIRTIO_NET_F_MQ]),
        ];
        let there = where_there.into_iter().filter(|&(there, _)| there).flat_map(|(_, bits)| bits);
        always.iter().chain(there).fold(0, |features, &bit| features | 1 << bit)
    }

    /// The configuration space, 5.1.4.
    pub fn config(&self, mac: Mac, link_up: bool) -> [u8; 12] {
        let mut space = [0; 12];
        space[..6].copy_from_slice(&mac);
        let status = if link_up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        space[10..12].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        space
    }
}

/// What a driver has accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted(pub u64);

impl Accepted {
    fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    /// What may be handed to it (5.1.3.1: nothing without checksums).
    pub fn offloads(self) -> Offloads {
        let checksum = self.has(VIRTIO_NET_F_GUEST_CSUM);
        let both = self.has(VIRTIO_NET_F_GUEST_USO4) && self.has(VIRTIO_NET_F_GUEST_USO6);
        Offloads {
            checksum,
            tso4: checksum && self.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && self.has(VIRTIO_NET_F_GUEST_TSO6),
            uso: checksum && both,
        }
    }

    /// Whether a frame may lie in several chains.
    pub fn mergeable(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// The control queue of a device with so many pairs (5.1.2).
    pub fn control_queue(self, pairs: u16) -> Option<u16> {
        let before = if self.has(VIRTIO_NET_F_MQ) { pairs } else { 1 };
        self.has(VIRTIO_NET_F_CTRL_VQ).then_some(2 * before)
    }

    /// The most bytes that a frame from the host has, its header among them.
    pub fn largest_received(self, mtu: u16) -> u32 {
        let Offloads { tso4, tso6, uso, .. } = self.offloads();
        if tso4 || tso6 || uso { LARGEST_RECEIVED } else { on_the_wire(mtu) }
    }
}

/// The most bytes of a frame as a wire carries it, with its header.
pub fn on_the_wire(mtu: u16) -> u32 {
    (HEADER + ETHERNET + u32::from(mtu)).min(LARGEST_RECEIVED)
}

/// What a command asks for (5.1.6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Frames to others, or to groups, are wanted or not: a TAP hands over all there are.
    Filter,
    /// This is the address.
    SetMac(Mac),
    /// So many pairs of queues are in use.
    SetPairs(u16),
    /// One that this device does not know, or that makes no sense.
    Refused,
}

/// What a command ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ack {
    /// It was done.
    Ok = VIRTIO_NET_OK as u8,
    /// It was not.
    Error = VIRTIO_NET_ERR as u8,
}

impl Command {
    /// Takes `chain` apart: the command, and where its acknowledgement goes.
    ///
    /// # Errors
    /// A clause: it names no command, or has no room for the answer.
    pub fn parse<M: GuestMemory>(
        chain: &Chain,
        accepted: Accepted,
        memory: &M,
    ) -> Result<(Command, u64), String> {
        let Some(answer) = chain.writable.first() else {
            return Err("has no room for its answer".into());
        };
        let command = Text { segments: &chain.readable, memory };
        let [class, what] = command.read(0)?.ok_or("has no command")?;
        let bytes = chain.readable_bytes() - 2;
        let parsed = match (class.into(), what.into()) {
            (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC | VIRTIO_NET_CTRL_RX_ALLMULTI)
                if accepted.has(VIRTIO_NET_F_CTRL_RX) && bytes == 1 =>
            {
                Command::Filter
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET)
                if accepted.has(VIRTIO_NET_F_CTRL_RX) && command.is_table(bytes)? =>
            {
                Command::Filter
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET)
                if accepted.has(VIRTIO_NET_F_CTRL_MAC_ADDR) && bytes == 6 =>
            {
                // A group's address is nobody's own.
                let mac = command.read::<6>(2)?.filter(|mac| mac[0] & 1 == 0);
                mac.map_or(Command::Refused, Command::SetMac)
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
                if accepted.has(VIRTIO_NET_F_MQ) && bytes == 2 =>
            {
                let pairs = command.read(2)?.map(u16::from_le_bytes);
                pairs.map_or(Command::Refused, Command::SetPairs)
            }
            _ => Command::Refused,
        };
        Ok((parsed, answer.addr))
    }
}

/// Bytes that a driver has spread over segments.
struct Text<'a, M> {
    segments: &'a [Segment],
    memory: &'a M,
}

impl<M: GuestMemory> Text<'_, M> {
    /// The bytes from `at` on, if there are as many.
    fn read<const N: usize>(&self, mut at: u64) -> Result<Option<[u8; N]>, String> {
        let mut bytes = [0; N];
        let mut filled = 0;
        for segment in self.segments {
            let len = u64::from(segment.len);
            if at >= len {
                at -= len;
                continue;
            }
            let now = (N - filled).min((len - at) as usize);
            let from = GuestAddress(segment.addr.wrapping_add(at));
            let read = self.memory.read_slice(&mut bytes[filled..filled + now], from);
            read.map_err(|error| format!("has a command that cannot be read: {error}"))?;
            filled += now;
            at = 0;
            if filled == N {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// Whether the command's `bytes` are two lists of addresses, each behind its length (5.1.6.5.2).
    fn is_table(&self, bytes: u64) -> Result<bool, String> {
        let mut at = 0;
        for _ in 0..2 {
            let Some(entries) = self.read(2 + at)? else { return Ok(false) };
            at += 4 + 6 * u64::from(u32::from_le_bytes(entries));
        }
        Ok(at == bytes)
    }
}
