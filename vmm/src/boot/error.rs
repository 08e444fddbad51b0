//! What can be wrong with a kernel, an initrd or a command line.

use linux_loader::loader::Error as LoaderError;
use thiserror::Error;

use super::layout;

/// Why a guest cannot be booted. Addresses are guest-physical; the caller adds the path of the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootError {
    // RAM
    /// RAM of a size that no layout exists for.
    #[error(
        "a guest cannot have {bytes} bytes of RAM: give it a multiple of 4096 from {min} to {max}",
        min = layout::RAM_MIN, max = layout::RAM_MAX
    )]
    RamSize {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// The host gave no address space to build the image in.
    #[error(
        "no address space to lay out {bytes} bytes of low guest RAM in: raise the limit on virtual memory ({reason})"
    )]
    Staging {
        /// Size of the mapping.
        bytes: u64,
        /// What the host said.
        reason: String,
    },
    /// The memory map has more entries than the boot protocol can carry.
    #[error(
        "the guest's memory map has {entries} entries, the boot protocol carries at most {max}"
    )]
    MemoryMapFull {
        /// Entries needed.
        entries: usize,
        /// Entries possible.
        max: usize,
    },
    /// Something does not lie in low RAM; the checks before should have caught it.
    #[error("the {what} of {len} bytes at {start:#x} does not lie in the guest's low RAM")]
    OutsideRam {
        /// What was to be written.
        what: &'static str,
        /// Where.
        start: u64,
        /// How much.
        len: u64,
    },

    // The kernel file
    /// Neither ELF nor bzImage.
    #[error(
        "not a kernel: the file of {len} bytes starts with {start:02x?}; give an x86-64 ELF vmlinux or a bzImage"
    )]
    NotAKernel {
        /// File size in bytes.
        len: usize,
        /// Its first bytes, four at most.
        start: Vec<u8>,
    },
    /// The file ends before what its headers promise.
    #[error(
        "the kernel is cut short: its {what} ends at byte {end}, the file at byte {len}; copy or build it again"
    )]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Where that part ends, in bytes from the start of the file.
        end: u64,
        /// File size in bytes.
        len: u64,
    },
    /// An ELF that no x86-64 guest can run.
    #[error("the ELF file's {field} is {found:#x}, an x86-64 kernel has {expected}")]
    WrongElf {
        /// Header field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What it should be.
        expected: &'static str,
    },
    /// A program header that contradicts itself or the file.
    #[error("program header {index} of the ELF file is not valid: {why}")]
    BadSegment {
        /// Position in the program header table, from 0.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// An ELF without anything to load.
    #[error(
        "the ELF file has no segment to load: give the linked vmlinux, not an object file or its debug symbols"
    )]
    NothingToLoad,
    /// The kernel ends after the end of low RAM.
    #[error(
        "the kernel reaches up to {end:#x}, the guest's low RAM ends at {ram_end:#x}: give it at least {needed_mib} MiB"
    )]
    PastRam {
        /// First address after the kernel, its zeroed data included.
        end: u64,
        /// First address after low RAM.
        ram_end: u64,
        /// RAM in MiB that holds the kernel.
        needed_mib: u64,
    },
    /// The kernel is linked to addresses that are never RAM, or that boot tables cannot map.
    #[error(
        "the kernel wants {start:#x}..{end:#x}, but RAM below 4 GiB ends at {hole:#x}, where the MMIO hole starts: link it lower",
        hole = layout::MMIO_HOLE_START
    )]
    InMmioHole {
        /// First address.
        start: u64,
        /// First address after it.
        end: u64,
    },
    /// The kernel would overwrite the tables it is started with.
    #[error(
        "the kernel wants {start:#x}..{end:#x}, but boot tables and firmware areas lie below {first:#x}: link it at 1 MiB or above",
        first = layout::HIGH_MEMORY
    )]
    OverLowMemory {
        /// First address.
        start: u64,
        /// First address after it.
        end: u64,
    },
    /// The entry point is not in the file.
    #[error(
        "the {which} entry point {entry:#x} lies in no segment that is loaded from the file: {advice}"
    )]
    EntryOutside {
        /// "64-bit" or "PVH".
        which: &'static str,
        /// Its address.
        entry: u64,
        /// What to do.
        advice: &'static str,
    },
    /// PVH was asked for and the kernel cannot.
    #[error(
        "the kernel has no PVH entry point: build it with CONFIG_PVH or choose the linux64 protocol"
    )]
    NoPvhEntry,
    /// A bzImage that cannot be started at its 64-bit entry.
    #[error("the bzImage cannot be started in 64-bit mode: {why}")]
    BadBzImage {
        /// What is missing.
        why: String,
    },
    /// The loader refused what the checks let pass.
    #[error("the kernel could not be loaded: {}", .0.to_string().to_lowercase())]
    Loader(LoaderError),

    // Unpacking
    /// A compression that is not known here.
    #[error(
        "the bzImage's kernel is packed with {method}, which is not supported: build it with lz4, gzip or zstd, or give the vmlinux"
    )]
    Packing {
        /// Name, or the first bytes.
        method: String,
    },
    /// The packed kernel is damaged.
    #[error("the bzImage's kernel cannot be unpacked ({method}): {reason}; copy or build it again")]
    Unpack {
        /// Compression method.
        method: &'static str,
        /// What the decompressor said.
        reason: String,
    },
    /// The packed kernel claims to be larger than any kernel is.
    #[error(
        "the bzImage's kernel claims to unpack to {claimed} bytes, more than the limit of {limit}"
    )]
    UnpackLimit {
        /// From the last four bytes of the payload.
        claimed: u64,
        /// Most that is accepted, in bytes.
        limit: u64,
    },

    // initrd and command line
    /// An initrd without content.
    #[error("the initrd is empty: leave it out or give a cpio archive")]
    EmptyInitrd,
    /// No room between the kernel and the end of what the kernel can reach.
    #[error(
        "the initrd of {len} bytes does not fit between the kernel's end {kernel_end:#x} and {limit:#x}: give the guest more RAM"
    )]
    InitrdTooLarge {
        /// Its size in bytes.
        len: u64,
        /// First address after the kernel.
        kernel_end: u64,
        /// First address that cannot be used: the end of low RAM or what the kernel's header says.
        limit: u64,
    },
    /// More characters than the kernel keeps.
    #[error("the command line has {len} characters, this kernel takes at most {limit}: shorten it")]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// What the kernel takes, without the terminating zero.
        limit: usize,
    },
    /// A byte that is not printable ASCII.
    #[error(
        "the command line has byte {byte:#04x} at position {at}: only printable ASCII is allowed"
    )]
    CmdlineByte {
        /// The byte.
        byte: u8,
        /// Its position, from 0.
        at: usize,
    },
    /// The loader's command line refused it for another reason.
    #[error("the command line is not valid: {reason}")]
    Cmdline {
        /// What it said.
        reason: String,
    },

    /// More CPUs than the MP table describes, or none.
    #[error("a guest cannot have {cpus} CPUs: give it 1 to {max}", max = super::mptable::CpuCount::MAX)]
    CpuCount {
        /// What was asked for.
        cpus: u32,
    },
}

impl From<LoaderError> for BootError {
    fn from(error: LoaderError) -> Self {
        Self::Loader(error)
    }
}
