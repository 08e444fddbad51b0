//! The virtio devices of a microVM, each filled in and checked.

mod mac;

use serde::{Serialize, Serializer};

pub use mac::Mac;

use super::HostPath;
use super::machine::{Rate, Setting, keywords};
use super::{Bytes, Origin, RamRange};

keywords! {
    /// The kinds of devices, by the words that their tables begin with.
    Family {
        /// A block device.
        Disk = "disk",
        /// A network interface.
        Net = "net",
        /// A source of entropy.
        Rng = "rng",
        /// A console.
        Hvc = "hvc",
        /// A memory balloon.
        Balloon = "balloon",
        /// Persistent memory.
        Pmem = "pmem",
        /// Sockets between guest and host.
        Vsock = "vsock",
    }
}

impl Family {
    /// The family of that word.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|family| family.as_str() == word)
    }
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name, which no other of its family has: 1 to 32 characters out of `a-z`, `0-9`, `-` and `_`.
    pub name: String,
    /// Where it was first named.
    #[serde(flatten)]
    pub origin: Origin,
    /// What it is.
    #[serde(flatten)]
    pub kind: DeviceKind,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "family", rename_all = "lowercase")]
pub enum DeviceKind {
    /// `[disk.NAME]`
    Disk(Disk),
    /// `[net.NAME]`
    Net(Net),
    /// `[rng.NAME]`
    Rng(Rng),
    /// `[hvc.NAME]`
    Hvc(Hvc),
    /// `[balloon.NAME]`, at most one.
    Balloon(Balloon),
    /// `[pmem.NAME]`
    Pmem(Pmem),
    /// `[vsock.NAME]`, at most one.
    Vsock(Vsock),
}

impl DeviceKind {
    /// Its family.
    pub const fn family(&self) -> Family {
        match self {
            DeviceKind::Disk(_) => Family::Disk,
            DeviceKind::Net(_) => Family::Net,
            DeviceKind::Rng(_) => Family::Rng,
            DeviceKind::Hvc(_) => Family::Hvc,
            DeviceKind::Balloon(_) => Family::Balloon,
            DeviceKind::Pmem(_) => Family::Pmem,
            DeviceKind::Vsock(_) => Family::Vsock,
        }
    }
}

/// What a device stores in. It was there, and had so many bytes, when the config was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackingFile {
    /// The file, found from the config's folder.
    pub path: HostPath,
    /// Its size.
    pub bytes: Bytes,
}

/// Bytes in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRate {
    /// So many, not 0.
    PerSecond(Bytes),
    /// As many as can be.
    Unlimited,
}

impl ByteRate {
    /// The most, if there is one.
    pub const fn limit(self) -> Option<Bytes> {
        match self {
            ByteRate::PerSecond(bytes) => Some(bytes),
            ByteRate::Unlimited => None,
        }
    }
}

impl std::fmt::Display for ByteRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ByteRate::PerSecond(bytes) => write!(f, "{bytes}/s"),
            ByteRate::Unlimited => f.write_str("unlimited"),
        }
    }
}

/// As in a config: a number of bytes, or `"unlimited"`.
impl Serialize for ByteRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ByteRate::PerSecond(bytes) => bytes.serialize(serializer),
            ByteRate::Unlimited => serializer.serialize_str("unlimited"),
        }
    }
}

keywords! {
    /// `disk.NAME.io`: how a disk's requests reach its file.
    DiskIo {
        /// By io_uring where the host has it.
        Auto = "auto",
        /// By io_uring.
        Uring = "uring",
        /// By a system call each.
        Sync = "sync",
    }
}

/// `[disk.NAME]`: a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// A raw file or a block device: a multiple of 512 bytes, not 0; readable, and writable unless
    /// [`readonly`](Self::readonly).
    pub file: Setting<BackingFile>,
    /// Whether the guest cannot write.
    pub readonly: Setting<bool>,
    /// How requests reach the file.
    pub io: Setting<DiskIo>,
    /// Whether discard and write-zeroes are offered.
    pub discard: Setting<bool>,
    /// Descriptors of each queue: a power of two from 2 to 1024.
    pub queue_size: Setting<u16>,
    /// Queues, 1 to 8.
    pub queues: Setting<u8>,
    /// Bytes read and written in a second.
    pub rate_bytes: Setting<ByteRate>,
    /// Requests in a second.
    pub rate_ops: Setting<Rate>,
    /// The ID that the guest reads: at most 20 printable ASCII characters.
    pub serial: Setting<String>,
}

/// `[net.NAME]`: a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Net {
    /// The tap interface of the host: a name of 1 to 15 bytes. Whether it is there is not known.
    pub tap: Setting<String>,
    /// The guest's address.
    pub mac: Setting<Mac>,
    /// Pairs of queues, 1 to 8.
    pub queues: Setting<u8>,
    /// Descriptors of each queue: a power of two from 2 to 1024.
    pub queue_size: Setting<u16>,
    /// Whether checksums and segmentation are offered.
    pub offloads: Setting<bool>,
}

/// `[rng.NAME]`: a source of entropy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rng {
    /// A character device or a file, which was there when the config was read.
    pub source: Setting<HostPath>,
    /// Bytes in a second.
    pub rate_bytes: Setting<ByteRate>,
}

/// `[hvc.NAME]`: a console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hvc {
    /// Where it leads. One device at most, the serial port included, has [`Port::Stdio`].
    pub port: Setting<Port>,
    /// Characters of a line. By default those of the terminal, where [`port`](Self::port) leads to one.
    pub columns: Setting<u16>,
    /// Lines, likewise.
    pub rows: Setting<u16>,
}

/// Where a console leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// The monitor's standard input and output.
    Stdio,
    /// Nowhere.
    Off,
    /// A file that is written; nothing is read. Its folder was there when the config was read.
    File(HostPath),
    /// A Unix socket to listen on. Its folder was there when the config was read.
    Socket(HostPath),
}

/// `[balloon.NAME]`: memory that the guest gives back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Balloon {
    /// What the guest is asked for at the start: a multiple of 4 KiB, at most its RAM.
    pub target: Setting<Bytes>,
    /// Whether the guest may take memory back when it has no other.
    pub deflate_on_oom: Setting<bool>,
    /// Whether the guest reports free pages.
    pub reporting: Setting<bool>,
    /// Seconds between two statistics of the guest, at most 3600; 0 for none.
    pub statistics: Setting<u16>,
}

keywords! {
    /// `pmem.NAME.sharing`: who has the memory.
    Sharing {
        /// The guest has pages of its own as soon as it writes to them. They go with it.
        Private = "private",
        /// All guests that have it see the same pages, which none of them may write to.
        Shared = "shared",
    }
}

/// `[pmem.NAME]`: a file as memory of the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pmem {
    /// A file of a multiple of 2 MiB, not 0. It is never written.
    pub file: Setting<BackingFile>,
    /// Who has the memory.
    pub sharing: Setting<Sharing>,
    /// Where it lies in the guest: behind RAM, at a multiple of 1 GiB.
    pub range: RamRange,
}

/// `[vsock.NAME]`: sockets between guest and host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// The guest's context ID, 3 to 2^32 - 2.
    pub cid: Setting<u32>,
    /// A Unix socket to listen on. The guest's connections to port P of the host go to this path with `_P` behind it. Its
    /// folder was there when the config was read.
    pub socket: Setting<HostPath>,
}
