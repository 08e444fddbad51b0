//! An ELF kernel: what its headers say, checked before anything is copied.
//!
//! `linux-loader` copies the segments. It trusts what it copies, so the checks are here: that every part lies in the file,
//! that every segment lies in RAM where a kernel may be, that the copies together are no more than the file. The notes are
//! read here too: the loader keeps the last note segment only, and a kernel may have several.

use std::io::Cursor;

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Nhdr,
    Elf64_Phdr, PT_LOAD, PT_NOTE,
};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{ByteValued, GuestAddress};

use super::BootError;
use super::layout::{HIGH_MEMORY, MMIO_HOLE_START, RamLayout};
use super::staging::Staging;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry point.
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_NAME: &[u8] = b"Xen\0";
/// Both Linux and Xen align notes to four bytes, whatever `p_align` says.
const NOTE_ALIGN: usize = 4;

/// A part of the kernel that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    start: u64,
    file_len: u64,
    memory_len: u64,
}

impl Segment {
    const fn end(self) -> u64 {
        self.start + self.memory_len
    }

    const fn holds(self, address: u64) -> bool {
        self.start <= address && address < self.start + self.file_len
    }
}

/// An ELF file whose headers have been checked.
#[derive(Debug)]
pub(super) struct ElfKernel<'a> {
    file: &'a [u8],
    segments: Vec<Segment>,
    entry: u64,
    pvh_entry: Option<u32>,
}

impl<'a> ElfKernel<'a> {
    /// Reads and checks the headers of `file`.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        let header: Elf64_Ehdr = object(file, 0, "ELF header")?;
        check_header(&header)?;

        let mut kernel =
            Self { file, segments: Vec::new(), entry: header.e_entry, pvh_entry: None };
        let mut copied = 0_u64;
        for index in 0..header.e_phnum {
            let index = usize::from(index);
            let at = header.e_phoff.checked_add((index * size_of::<Elf64_Phdr>()) as u64).ok_or(
                BootError::BadSegment { index, why: "the table's offset is beyond any file" },
            )?;
            let program: Elf64_Phdr = object(file, at, "program header table")?;
            match program.p_type {
                // The loader copies by file size alone, so one without memory is checked too.
                PT_LOAD if program.p_memsz > 0 || program.p_filesz > 0 => {
                    kernel.segments.push(segment(file, &program, index)?);
                    copied = copied.saturating_add(program.p_filesz);
                    if copied > file.len() as u64 {
                        return Err(BootError::BadSegment {
                            index,
                            why: "with it, the segments have more bytes than the file",
                        });
                    }
                }
                // The loader reads a note segment whatever becomes of it, so even an unused one must lie in the file.
                PT_NOTE => {
                    let notes = slice(file, program.p_offset, program.p_filesz, "note segment")?;
                    kernel.pvh_entry = kernel.pvh_entry.or_else(|| pvh_note(notes));
                }
                _ => {}
            }
        }
        if kernel.segments.is_empty() {
            return Err(BootError::NothingToLoad);
        }
        Ok(kernel)
    }

    /// The ELF entry point, when it is in what is loaded from the file. For Linux, `startup_64`, a physical address.
    pub(super) fn entry64(&self) -> Result<u64, BootError> {
        self.loaded(self.entry).ok_or(BootError::EntryOutside {
            which: "64-bit",
            entry: self.entry,
            advice: "it must be a physical address",
        })
    }

    /// The PVH entry point, when there is one and it is in what is loaded from the file.
    pub(super) fn pvh_entry(&self) -> Result<u32, BootError> {
        let entry = self.pvh_entry.ok_or(BootError::NoPvhEntry)?;
        self.loaded(entry.into()).map(|_| entry).ok_or(BootError::EntryOutside {
            which: "PVH",
            entry: entry.into(),
            advice: "its ELF note is wrong, choose the linux64 protocol",
        })
    }

    /// Checks that the kernel fits the guest's RAM. Returns the first address after it, its zeroed data included.
    pub(super) fn check_fits(&self, ram: RamLayout) -> Result<u64, BootError> {
        let mut kernel_end = 0;
        for segment in &self.segments {
            check_reach(segment.start, segment.end(), ram)?;
            kernel_end = kernel_end.max(segment.end());
        }
        Ok(kernel_end)
    }

    /// Copies a kernel that fits.
    pub(super) fn place(&self, staging: &mut Staging) -> Result<(), BootError> {
        Elf::load(staging.memory(), None, &mut Cursor::new(self.file), None)?;
        for segment in &self.segments {
            staging.note(GuestAddress(segment.start), segment.file_len);
        }
        Ok(())
    }

    fn loaded(&self, entry: u64) -> Option<u64> {
        self.segments.iter().any(|segment| segment.holds(entry)).then_some(entry)
    }
}

/// Checks that a kernel may lie at `start..end`: above the boot tables, in RAM, below the MMIO hole.
pub(super) fn check_reach(start: u64, end: u64, ram: RamLayout) -> Result<(), BootError> {
    const MIB: u64 = 1 << 20;
    let ram_end = ram.low().end();
    if start < HIGH_MEMORY {
        return Err(BootError::OverLowMemory { start, end });
    }
    if end > MMIO_HOLE_START {
        return Err(BootError::InMmioHole { start, end });
    }
    if end > ram_end {
        return Err(BootError::PastRam { end, ram_end, needed_mib: end.div_ceil(MIB) });
    }
    Ok(())
}

fn check_header(header: &Elf64_Ehdr) -> Result<(), BootError> {
    let ident = |at: usize| u64::from(header.e_ident[at]);
    let fields = [
        ("class", ident(EI_CLASS), u64::from(ELFCLASS64), "2 (64-bit)"),
        ("data encoding", ident(EI_DATA), u64::from(ELFDATA2LSB), "1 (little-endian)"),
        ("type", header.e_type.into(), u64::from(ET_EXEC), "2 (executable at fixed addresses)"),
        ("machine", header.e_machine.into(), u64::from(EM_X86_64), "0x3e (x86-64)"),
        ("program header size", header.e_phentsize.into(), size_of::<Elf64_Phdr>() as u64, "0x38"),
    ];
    for (field, found, wanted, expected) in fields {
        if found != wanted {
            return Err(BootError::WrongElf { field, found, expected });
        }
    }
    if header.e_phnum > 0 && header.e_phoff < size_of::<Elf64_Ehdr>() as u64 {
        return Err(BootError::WrongElf {
            field: "program header offset",
            found: header.e_phoff,
            expected: "at least 0x40",
        });
    }
    Ok(())
}

fn segment(file: &[u8], program: &Elf64_Phdr, index: usize) -> Result<Segment, BootError> {
    let bad = |why| BootError::BadSegment { index, why };
    if program.p_memsz < program.p_filesz {
        return Err(bad("it is larger in the file than in memory"));
    }
    program
        .p_paddr
        .checked_add(program.p_memsz)
        .ok_or_else(|| bad("it wraps around the end of the address space"))?;
    slice(file, program.p_offset, program.p_filesz, "segment")?;
    Ok(Segment { start: program.p_paddr, file_len: program.p_filesz, memory_len: program.p_memsz })
}

/// The PVH entry in a note segment. A note that does not fit ends the search: what follows cannot be found.
fn pvh_note(mut notes: &[u8]) -> Option<u32> {
    while let Some((header, rest)) = notes.split_at_checked(size_of::<Elf64_Nhdr>()) {
        let field = |at: usize| {
            header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
        };
        let (name_len, desc_len, kind) = (field(0)? as usize, field(4)? as usize, field(8)?);
        let (name, rest) = rest.split_at_checked(name_len.checked_next_multiple_of(NOTE_ALIGN)?)?;
        // The padding after the last description may be missing.
        let desc = rest.get(..desc_len)?;
        if kind == NOTE_PHYS32_ENTRY && name.get(..name_len)? == NOTE_NAME {
            // Linux writes eight bytes, the specification asks for four.
            return desc.get(..4)?.try_into().ok().map(u32::from_le_bytes);
        }
        notes = rest.get(desc_len.checked_next_multiple_of(NOTE_ALIGN)?..)?;
    }
    None
}

fn object<T: ByteValued + Default>(
    file: &[u8],
    at: u64,
    what: &'static str,
) -> Result<T, BootError> {
    let mut value = T::default();
    value.as_mut_slice().copy_from_slice(slice(file, at, size_of::<T>() as u64, what)?);
    Ok(value)
}

fn slice<'a>(file: &'a [u8], at: u64, len: u64, what: &'static str) -> Result<&'a [u8], BootError> {
    let end = at.saturating_add(len);
    usize::try_from(at)
        .ok()
        .zip(usize::try_from(end).ok())
        .and_then(|(at, end)| file.get(at..end))
        .ok_or(BootError::Truncated { what, end, len: file.len() as u64 })
}
