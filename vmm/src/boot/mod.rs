//! From files to a guest that can start: what must be in guest memory, and how the boot CPU enters it.
//!
//! [`load`] builds the low part of guest RAM in a sparse private mapping and returns it with the ranges that have content
//! and with the boot CPU's state. The machine copies ([`BootImage::for_each_page`]) and forgets the mapping; nothing here
//! knows KVM's file descriptors or the guest memory service.
//!
//! ```text
//!   kernel.rs    which format            linux64.rs   zero page           cpu_state.rs  registers, GDT, page tables
//!   elf.rs       ELF: check, copy        pvh.rs       start info          mptable.rs    MP table
//!   bzimage.rs   bzImage: check, copy    cmdline.rs   command line        e820.rs       memory map
//!   unpack.rs    vmlinux of a bzImage    initrd.rs    initrd              layout.rs     addresses
//!   acpi.rs      ACPI tables
//! ```
//!
//! # Which protocol
//! * ELF: [`Protocol::Auto`] takes the 64-bit protocol when the ELF entry point is in a loaded segment, else PVH when there
//!   is a PVH note. The 64-bit protocol comes first because a guest then starts in the mode it stays in.
//! * bzImage: the 64-bit entry of the file as it is, unless [`Packing::Unpack`] or [`Protocol::Pvh`] asks for the vmlinux
//!   in it, which then is treated as any ELF.
//!
//! # Input is not trusted
//! Kernels and initrds are files from elsewhere. Every offset is checked before `linux-loader` sees it, sizes are bounded
//! by the file or by [`unpack::UNPACKED_MAX`], and the property tests in `fuzz.rs` hold that no input panics.
//!
//! # Known holes
//! * ACPI is hardware-reduced and without events: no power button, no hotplug, no NUMA, no PCI.
//! * No relocation: a kernel runs where it was linked, so without address randomisation.
//! * One boot module (the initrd); xz, bzip2, lzma and lzo kernels are not unpacked.

mod acpi;
mod bzimage;
mod cmdline;
pub mod cpu_state;
pub mod e820;
mod elf;
mod error;
mod initrd;
pub mod kernel;
pub mod layout;
mod linux64;
pub mod mptable;
mod pvh;
mod staging;
pub mod unpack;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod kvm_tests;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use acpi::{AcpiMachine, VirtioMmio};
pub use cpu_state::{Entry, IdentityAccess, IdentityMap, IdentityPages, Mode};
pub use error::BootError;
pub use layout::{GuestExtent, RamLayout};
pub use mptable::CpuCount;

use bzimage::BzImage;
use e820::MemoryMap;
use elf::ElfKernel;
use kernel::Format;
use layout::PAGE_SIZE;
use staging::Staging;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// The 64-bit protocol if the kernel can, else PVH.
    #[default]
    Auto,
    /// Linux 64-bit boot protocol.
    Linux64,
    /// PVH; a bzImage is unpacked for it.
    Pvh,
}

/// What becomes of a bzImage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// The guest unpacks itself.
    #[default]
    AsIs,
    /// The host unpacks it.
    Unpack,
}

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootRequest<'a> {
    /// The kernel file: ELF or bzImage.
    pub kernel: &'a [u8],
    /// The initrd file.
    pub initrd: Option<&'a [u8]>,
    /// The command line, printable ASCII.
    pub cmdline: &'a str,
    /// The guest's RAM.
    pub ram: RamLayout,
    /// How to enter the kernel.
    pub protocol: Protocol,
    /// What to do with a bzImage.
    pub packing: Packing,
    /// The identity map of the 64-bit protocol.
    pub identity: IdentityMap,
    /// CPUs to describe in an MP table; without it there is none, which a built-in guest does not miss.
    pub mp_table: Option<CpuCount>,
    /// What to describe in ACPI tables; without it there are none.
    pub acpi: Option<AcpiMachine<'a>>,
}

impl<'a> BootRequest<'a> {
    /// A request with everything but kernel and RAM at its default.
    pub fn new(kernel: &'a [u8], ram: RamLayout) -> Self {
        Self {
            kernel,
            initrd: None,
            cmdline: "",
            ram,
            protocol: Protocol::default(),
            packing: Packing::default(),
            identity: IdentityMap::default(),
            mp_table: None,
            acpi: None,
        }
    }
}

/// What must be in guest memory, and how the boot CPU starts.
#[derive(Debug)]
pub struct BootImage {
    /// Low RAM as the guest must find it, from address 0. What no extent covers is zero.
    pub staging: GuestMemoryMmap<()>,
    /// The pages that were written: whole pages, sorted, merged.
    pub extents: Vec<GuestExtent>,
    /// How the boot CPU starts.
    pub entry: Entry,
    /// The memory map that the guest is told.
    pub memory_map: MemoryMap,
    /// Where the kernel, its zeroed data included, ends.
    pub kernel_end: GuestAddress,
    /// Where the initrd lies.
    pub initrd: Option<GuestExtent>,
}

/// Builds the boot image.
///
/// # Errors
/// Any [`BootError`]; none of them leaves anything behind.
pub fn load(request: &BootRequest<'_>) -> Result<BootImage, BootError> {
    match kernel::recognise(request.kernel)? {
        Format::Elf => load_elf(request, request.kernel),
        Format::BzImage
            if request.packing == Packing::Unpack || request.protocol == Protocol::Pvh =>
        {
            load_elf(request, &unpack::vmlinux(request.kernel)?)
        }
        Format::BzImage => load_bzimage(request),
    }
}

fn load_elf(request: &BootRequest<'_>, file: &[u8]) -> Result<BootImage, BootError> {
    let kernel = ElfKernel::parse(file)?;
    // Before the entry point: of a kernel linked to a wrong address both are wrong, and this message tells why.
    let kernel_end = kernel.check_fits(request.ram)?;
    let entry = match request.protocol {
        Protocol::Linux64 => kernel.entry64().map(ElfEntry::Linux64),
        Protocol::Pvh => kernel.pvh_entry().map(ElfEntry::Pvh),
        // When neither works, the reason for the first is the more useful one.
        Protocol::Auto => match (kernel.entry64(), kernel.pvh_entry()) {
            (Err(_), Ok(entry)) => Ok(ElfEntry::Pvh(entry)),
            (entry, _) => entry.map(ElfEntry::Linux64),
        },
    }?;
    let mut staging = Staging::new(request.ram)?;
    kernel.place(&mut staging)?;
    let common =
        Common::place(&mut staging, request, kernel_end, cmdline::ELF_LIMIT, initrd::ELF_ADDR_MAX)?;
    let entry = match entry {
        ElfEntry::Linux64(entry) => {
            let header = linux64::elf_header();
            linux64::place(&mut staging, entry, header, &common, request.identity)?
        }
        ElfEntry::Pvh(entry) => pvh::place(&mut staging, entry, &common)?,
    };
    Ok(common.finish(staging, entry))
}

enum ElfEntry {
    Linux64(u64),
    Pvh(u32),
}

fn load_bzimage(request: &BootRequest<'_>) -> Result<BootImage, BootError> {
    let kernel = BzImage::parse(request.kernel)?;
    let header = kernel.header();
    let mut staging = Staging::new(request.ram)?;
    let (entry, kernel_end) = kernel.place(&mut staging, request.ram)?;
    let cmdline_limit = header.cmdline_size as usize;
    let common =
        Common::place(&mut staging, request, kernel_end, cmdline_limit, header.initrd_addr_max)?;
    let entry = linux64::place(&mut staging, entry, header, &common, request.identity)?;
    Ok(common.finish(staging, entry))
}

/// What every protocol needs, and tells the kernel of.
struct Common {
    memory_map: MemoryMap,
    kernel_end: u64,
    initrd: Option<GuestExtent>,
    /// The root of the ACPI tables.
    rsdp: Option<GuestAddress>,
}

impl Common {
    fn place(
        staging: &mut Staging,
        request: &BootRequest<'_>,
        kernel_end: u64,
        cmdline_limit: usize,
        initrd_addr_max: u32,
    ) -> Result<Self, BootError> {
        cmdline::place(staging, request.cmdline, cmdline_limit)?;
        let initrd = request
            .initrd
            .map(|content| {
                initrd::place(staging, request.ram, content, kernel_end, initrd_addr_max)
            })
            .transpose()?;
        if let Some(cpus) = request.mp_table {
            mptable::place(staging, cpus)?;
        }
        let rsdp = request.acpi.map(|machine| acpi::place(staging, machine)).transpose()?;
        Ok(Self { memory_map: MemoryMap::of(request.ram), kernel_end, initrd, rsdp })
    }

    fn finish(self, staging: Staging, entry: Entry) -> BootImage {
        let (staging, extents) = staging.finish();
        BootImage {
            staging,
            extents,
            entry,
            memory_map: self.memory_map,
            kernel_end: GuestAddress(self.kernel_end),
            initrd: self.initrd,
        }
    }
}

impl BootImage {
    /// Hands every written page that is not all zeros to `sink`, in address order. Returns how many those were.
    ///
    /// # Errors
    /// The first error of `sink`.
    pub fn for_each_page<E>(
        &self,
        mut sink: impl FnMut(GuestAddress, &[u8; PAGE_SIZE as usize]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut nr_pages = 0;
        self.for_every_page(|start, page| {
            if page.iter().any(|&byte| byte != 0) {
                sink(start, page)?;
                nr_pages += 1;
            }
            Ok(())
        })?;
        Ok(nr_pages)
    }

    /// As [`for_each_page`](Self::for_each_page), with the pages of zeroes: for memory that is something else before.
    ///
    /// # Errors
    /// What `sink` says.
    pub fn for_every_page<E>(
        &self,
        mut sink: impl FnMut(GuestAddress, &[u8; PAGE_SIZE as usize]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut page = [0; PAGE_SIZE as usize];
        for extent in &self.extents {
            for start in (extent.start.0..extent.end()).step_by(PAGE_SIZE as usize) {
                let start = GuestAddress(start);
                // By construction: `Staging::write` and the loaders' checks let nothing out of it.
                self.staging
                    .read_slice(&mut page, start)
                    .expect("extents lie in the staging memory");
                sink(start, &page)?;
            }
        }
        Ok(())
    }
}
