//! A bzImage: its setup header, checked, and its protected-mode part, placed.
//!
//! Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "64-bit Boot Protocol". The real-mode part never
//! runs here.

use std::io::Cursor;

use linux_loader::bootparam::setup_header;
use linux_loader::loader::{BzImage as Loader, KernelLoader};
use vm_memory::{ByteValued, GuestAddress};

use super::BootError;
use super::elf::check_reach;
use super::layout::RamLayout;
use super::staging::Staging;

/// Where the setup header starts in the file.
const HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
/// The header ends 0x202 bytes into the file plus the byte here: the offset of the jump over it.
const HEADER_LEN: usize = 0x201;
const MAGIC: usize = 0x202;
const MAGIC_VALUE: &[u8] = b"HdrS";
/// End of `init_size`, the last field that is needed.
const HEADER_NEEDED: usize = 0x264;

const SECTOR: usize = 512;
/// The number of setup sectors when the header says 0.
const OLD_SETUP_SECTS: usize = 4;
/// Protocol 2.12 introduced `xloadflags`, and with it the 64-bit entry point.
const VERSION_64: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point, from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;

/// Whether `file` has the magic number of the setup header.
pub(super) fn has_magic(file: &[u8]) -> bool {
    file.get(MAGIC..).is_some_and(|rest| rest.starts_with(MAGIC_VALUE))
}

/// A bzImage whose header has been checked.
pub(super) struct BzImage<'a> {
    file: &'a [u8],
    header: setup_header,
    /// File offset of the protected-mode part.
    protected: usize,
}

impl<'a> BzImage<'a> {
    /// Reads and checks the header of `file`.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        let cut = |what, end: usize| BootError::Truncated {
            what,
            end: end as u64,
            len: file.len() as u64,
        };
        let header_end = MAGIC
            + usize::from(*file.get(HEADER_LEN).ok_or_else(|| cut("setup header", HEADER_NEEDED))?);
        if file.get(BOOT_FLAG..MAGIC - 2) != Some(&[0x55, 0xaa]) {
            return Err(bad("byte 0x1fe is not followed by the boot signature 55 aa".into()));
        }
        if header_end < HEADER_NEEDED {
            return Err(bad(format!(
                "its setup header ends at {header_end:#x}, before init_size; it predates protocol 2.12"
            )));
        }
        let bytes = file.get(HEADER..header_end).ok_or_else(|| cut("setup header", header_end))?;
        // The header may be longer than what we know of it, or end in the middle: what it does not have is zero.
        let mut header = setup_header::default();
        let known = header.as_mut_slice().len().min(bytes.len());
        header.as_mut_slice()[..known].copy_from_slice(&bytes[..known]);

        let (version, xloadflags) = (header.version, header.xloadflags);
        if version < VERSION_64 {
            return Err(bad(format!(
                "it has boot protocol {}.{:02}, 2.12 is needed",
                version >> 8,
                version & 0xff
            )));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(bad("it is a zImage, loaded below 1 MiB".into()));
        }
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(bad(
                "it has no 64-bit entry point (XLF_KERNEL_64), so it is a 32-bit kernel".into(),
            ));
        }
        let sectors = match usize::from(header.setup_sects) {
            0 => OLD_SETUP_SECTS,
            sectors => sectors,
        };
        let protected = (sectors + 1) * SECTOR;
        // syssize counts paragraphs of 16 bytes.
        let end = protected + (header.syssize as usize * 16).max(ENTRY_64 as usize + 1);
        if end > file.len() {
            return Err(cut("protected-mode part", end));
        }
        Ok(Self { file, header, protected })
    }

    /// The header as the file has it, for the zero page.
    pub(super) const fn header(&self) -> setup_header {
        self.header
    }

    /// The packed kernel.
    pub(super) fn payload(&self) -> Result<&'a [u8], BootError> {
        let start = self.protected.saturating_add(self.header.payload_offset as usize);
        let end = start.saturating_add(self.header.payload_length as usize);
        self.file.get(start..end).ok_or(BootError::Truncated {
            what: "packed kernel",
            end: end as u64,
            len: self.file.len() as u64,
        })
    }

    /// Places the protected-mode part at the address the kernel prefers. Returns (64-bit entry, first address after all
    /// that the kernel uses before it has read the memory map).
    ///
    /// A relocatable kernel that is loaded lower would unpack itself at that address all the same.
    pub(super) fn place(
        &self,
        staging: &mut Staging,
        ram: RamLayout,
    ) -> Result<(u64, u64), BootError> {
        let start = self.header.pref_address;
        let len = (self.file.len() - self.protected) as u64;
        // What it needs is counted from where it unpacks itself: its start, aligned as it asks.
        let alignment = self.header.kernel_alignment.max(1);
        let end = start
            .checked_next_multiple_of(alignment.into())
            .and_then(|runtime| runtime.checked_add(len.max(self.header.init_size.into())))
            .ok_or_else(|| {
                bad(format!("its preferred address {start:#x} is at the end of the address space"))
            })?;
        check_reach(start, end, ram)?;
        Loader::load(
            staging.memory(),
            Some(GuestAddress(start)),
            &mut Cursor::new(self.file),
            None,
        )?;
        staging.note(GuestAddress(start), len);
        Ok((start + ENTRY_64, end))
    }
}

const fn bad(why: String) -> BootError {
    BootError::BadBzImage { why }
}
