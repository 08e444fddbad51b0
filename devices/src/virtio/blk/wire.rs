//! What the driver of a disk sees: features, the configuration space, requests (virtio 1.2, section 5.2).

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestMemory;

use crate::dma::{Segment, gather, part};
use crate::virtio::queue::{Broken, Chain};

/// Bytes of a sector: the unit of all numbers of this device.
pub const SECTOR: u64 = 512;
/// Bytes of the disk's name.
pub const ID_BYTES: usize = 20;
/// Bytes of a request's header.
const HEADER: usize = 16;
/// Segments of a request's data at most, whatever the queue's size: with the bound on bytes, what a request takes of the
/// host, its pins above all.
const MAX_SEGMENTS: u16 = 254;
/// Bytes of a request's data at most.
const MAX_BYTES: u64 = 64 << 20;
/// Bytes of a range to discard.
pub const RANGE_BYTES: u64 = 16;
/// Ranges that one request may discard.
pub const MAX_RANGES: u32 = 32;
/// The most sectors of such a range: 1 GiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// The largest unit of writes that a disk names, in bytes.
const BLOCK: u32 = 512;

/// What a request ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It was done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// It failed.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// It is none that this device knows.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a driver may be shown of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sectors.
    pub sectors: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Whether ranges may be discarded, and zeroed without being sent.
    pub discard: bool,
    /// Queues, at least 1.
    pub queues: u16,
    /// Descriptors of each.
    pub queue_size: u16,
}

impl Shape {
    /// The features of such a disk.
    pub fn features(&self) -> u64 {
        let mut bits = vec![VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH];
        if self.read_only {
            bits.push(VIRTIO_BLK_F_RO);
        } else if self.discard {
            bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        if self.queues > 1 {
            bits.push(VIRTIO_BLK_F_MQ);
        }
        bits.into_iter().fold(0, |features, bit| features | 1 << bit)
    }

    /// The configuration space, 5.2.4.
    pub fn config(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        // seg_max: header and status take a descriptor each.
        let segments = self.queue_size.saturating_sub(2).clamp(1, MAX_SEGMENTS);
        put(12, &u32::from(segments).to_le_bytes());
        put(20, &BLOCK.to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        if self.discard && !self.read_only {
            let most = [MAX_RANGE_SECTORS, MAX_RANGES];
            // max_discard_sectors, max_discard_seg, discard_sector_alignment
            put(36, &most[0].to_le_bytes());
            put(40, &most[1].to_le_bytes());
            put(44, &8_u32.to_le_bytes());
            // max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap
            put(48, &most[0].to_le_bytes());
            put(52, &most[1].to_le_bytes());
            put(56, &[1]);
        }
        space
    }
}

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read sectors.
    In,
    /// Write sectors.
    Out,
    /// What was written is to last.
    Flush,
    /// Ranges are of no use any more.
    Discard,
    /// Ranges are to be zeroes.
    WriteZeroes,
    /// The disk's name.
    GetId,
    /// Something else.
    Unknown(u32),
}

/// A request, its buffers apart from the chain's header and status.
#[derive(Debug, Default)]
pub struct Asked {
    kind: u32,
    /// The first sector.
    pub sector: u64,
    /// Memory that the disk reads.
    pub source: Vec<Segment>,
    /// Memory that the disk writes.
    pub sink: Vec<Segment>,
    /// Where the status goes.
    pub status: u64,
}

impl Asked {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self.kind {
            VIRTIO_BLK_T_IN => Kind::In,
            VIRTIO_BLK_T_OUT => Kind::Out,
            VIRTIO_BLK_T_FLUSH => Kind::Flush,
            VIRTIO_BLK_T_DISCARD => Kind::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Kind::WriteZeroes,
            VIRTIO_BLK_T_GET_ID => Kind::GetId,
            other => Kind::Unknown(other),
        }
    }

    /// Bytes that the disk reads and writes of memory.
    pub fn bytes(&self) -> u64 {
        let sum = |segments: &[Segment]| -> u64 { segments.iter().map(|s| u64::from(s.len)).sum() };
        sum(&self.source) + sum(&self.sink)
    }

    /// Takes `chain` apart. The header may lie in several descriptors, and be followed by data in its last; the status is
    /// the last byte that may be written (2.7.4.1: how a request is cut into descriptors means nothing).
    ///
    /// # Errors
    /// It is no request, or its header cannot be read.
    pub fn parse<M: GuestMemory>(
        &mut self,
        queue: u16,
        chain: &Chain,
        memory: &M,
    ) -> Result<(), Broken> {
        let bad = |reason| Broken::Request { queue, head: chain.head, reason };
        self.sink.clear();
        let mut header = [0; HEADER];
        let filled = gather(memory, &chain.readable, &mut header)
            .map_err(|source| Broken::Memory { queue, source })?;
        if filled < HEADER {
            return Err(bad(format!("has a header of {filled} bytes, not {HEADER}")));
        }
        part(&chain.readable, HEADER as u64, u64::MAX, &mut self.source);
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        self.kind = word(0);
        self.sector = u64::from(word(12)) << 32 | u64::from(word(8));
        let Some((last, others)) = chain.writable.split_last() else {
            return Err(bad("has no room for its status".into()));
        };
        self.sink.extend_from_slice(others);
        let (data, status) = last.split_at(last.len - 1);
        self.sink.extend(data);
        self.status = status.map_or(last.addr, |status| status.addr);
        // The header's and the status' descriptors may have data in them.
        if self.source.len().max(self.sink.len()) > usize::from(MAX_SEGMENTS) + 1 {
            let reason = format!("has more than {MAX_SEGMENTS} segments, which is told as seg_max");
            return Err(bad(reason));
        }
        if self.bytes() > MAX_BYTES {
            return Err(bad(format!("is larger than {} MiB", MAX_BYTES >> 20)));
        }
        Ok(())
    }
}

/// A range to discard or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first sector.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
    /// Whether the host may give the space up.
    pub unmap: bool,
}

impl Range {
    /// A range as a driver writes it; `None` if it uses flags that there are not (5.2.6.2).
    pub fn parse(bytes: [u8; RANGE_BYTES as usize], kind: Kind) -> Option<Range> {
        let (sector, rest) = bytes.split_first_chunk::<8>()?;
        let (sectors, flags) = rest.split_first_chunk::<4>()?;
        let flags = u32::from_le_bytes(flags.try_into().ok()?);
        let known = if kind == Kind::WriteZeroes { 1 } else { 0 };
        (flags & !known == 0).then(|| Range {
            sector: u64::from_le_bytes(*sector),
            sectors: u32::from_le_bytes(*sectors),
            unmap: kind == Kind::Discard || flags & 1 != 0,
        })
    }
}
