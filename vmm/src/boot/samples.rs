//! Small kernels made by hand, for the tests.

/// Where the sample's code is linked, in bytes.
pub(super) const ELF_START: u64 = 0x10_0000;
/// Its ELF entry point.
pub(super) const ELF_ENTRY: u64 = ELF_START + 0x10;
/// Its PVH entry point.
pub(super) const PVH_ENTRY: u32 = ELF_START as u32 + 0x20;
/// Its code: enough for both entry points.
pub(super) const CODE: &[u8] = &[0xf4; 0x40];
/// Its zeroed data, after the code.
pub(super) const ZEROED: u64 = 0x2000;

/// Offsets of ELF header fields.
pub(super) mod ehdr {
    pub(crate) const CLASS: usize = 4;
    pub(crate) const TYPE: usize = 16;
    pub(crate) const MACHINE: usize = 18;
    pub(crate) const ENTRY: usize = 24;
    pub(crate) const PHOFF: usize = 32;
    pub(crate) const PHNUM: usize = 56;
    pub(crate) const LEN: usize = 64;
}

/// Offsets of program header fields.
pub(super) mod phdr {
    pub(crate) const OFFSET: usize = 8;
    pub(crate) const PADDR: usize = 24;
    pub(crate) const FILESZ: usize = 32;
    pub(crate) const MEMSZ: usize = 40;
    pub(crate) const LEN: usize = 56;
}

/// A valid ELF kernel with one segment and a PVH note behind another note.
pub(super) fn elf() -> Vec<u8> {
    let mut notes = note(b"GNU\0", 3, &[1, 2, 3, 4, 5]);
    notes.extend(note(b"Xen\0", 18, &u64::from(PVH_ENTRY).to_le_bytes()));
    elf_with(&notes)
}

/// A valid ELF kernel with these notes.
pub(super) fn elf_with(notes: &[u8]) -> Vec<u8> {
    let first = (ehdr::LEN + 2 * phdr::LEN) as u64;
    let code_len = CODE.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(ELF_ENTRY.to_le_bytes());
    file.extend((ehdr::LEN as u64).to_le_bytes());
    file.extend([0; 12]);
    file.extend([64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    program(&mut file, 1, first, ELF_START, code_len, code_len + ZEROED);
    program(&mut file, 4, first + code_len, 0, notes.len() as u64, notes.len() as u64);
    file.extend(CODE);
    file.extend(notes);
    file
}

fn program(file: &mut Vec<u8>, kind: u32, offset: u64, paddr: u64, filesz: u64, memsz: u64) {
    file.extend(kind.to_le_bytes());
    file.extend(7_u32.to_le_bytes());
    for field in [offset, paddr, paddr, filesz, memsz, 4] {
        file.extend(field.to_le_bytes());
    }
}

/// A note, padded.
pub(super) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for field in [name.len() as u32, desc.len() as u32, kind] {
        note.extend(field.to_le_bytes());
    }
    for part in [name, desc] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// Where the sample bzImage wants to run.
pub(super) const BZIMAGE_START: u64 = 0x20_0000;
/// How much room it needs there, in bytes.
pub(super) const BZIMAGE_INIT_SIZE: u32 = 0x4_0000;
/// How many characters of command line it takes.
pub(super) const BZIMAGE_CMDLINE: u32 = 300;
/// The highest address of an initrd.
pub(super) const BZIMAGE_INITRD_MAX: u32 = 0x3f_ffff;

/// Offsets of setup header fields in the file.
pub(super) mod setup {
    pub(crate) const SETUP_SECTS: usize = 0x1f1;
    pub(crate) const SYSSIZE: usize = 0x1f4;
    pub(crate) const BOOT_FLAG: usize = 0x1fe;
    pub(crate) const HEADER_LEN: usize = 0x201;
    pub(crate) const VERSION: usize = 0x206;
    pub(crate) const LOADFLAGS: usize = 0x211;
    pub(crate) const XLOADFLAGS: usize = 0x236;
    pub(crate) const PAYLOAD_OFFSET: usize = 0x248;
    pub(crate) const PAYLOAD_LENGTH: usize = 0x24c;
    pub(crate) const PREF_ADDRESS: usize = 0x258;
    pub(crate) const INIT_SIZE: usize = 0x260;
    /// End of the setup header, start of the real-mode code.
    pub(crate) const END: usize = 0x268;
}

/// A valid bzImage with this payload 0x300 bytes into its protected-mode part.
pub(super) fn bzimage(payload: &[u8]) -> Vec<u8> {
    const PROTECTED: usize = 2 * 512;
    const PAYLOAD: usize = 0x300;
    let mut file = vec![0; PROTECTED];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(setup::SETUP_SECTS, &[1]);
    put(setup::BOOT_FLAG, &[0x55, 0xaa, 0xeb, (setup::END - 0x202) as u8]);
    put(0x202, b"HdrS");
    put(setup::VERSION, &[0x0f, 0x02]);
    put(setup::LOADFLAGS, &[1]);
    put(0x22c, &BZIMAGE_INITRD_MAX.to_le_bytes());
    put(setup::XLOADFLAGS, &[0x3f, 0]);
    put(0x238, &BZIMAGE_CMDLINE.to_le_bytes());
    put(setup::PAYLOAD_OFFSET, &(PAYLOAD as u32).to_le_bytes());
    put(setup::PAYLOAD_LENGTH, &(payload.len() as u32).to_le_bytes());
    put(setup::PREF_ADDRESS, &BZIMAGE_START.to_le_bytes());
    put(setup::INIT_SIZE, &BZIMAGE_INIT_SIZE.to_le_bytes());
    // What follows the header is code; it must not end up in the zero page.
    put(setup::END, &[0xcc; 16]);
    file.resize(PROTECTED + PAYLOAD, 0x90);
    file.extend(payload);
    file.resize(file.len().next_multiple_of(16), 0);
    let paragraphs = ((file.len() - PROTECTED) / 16) as u32;
    file[setup::SYSSIZE..setup::SYSSIZE + 4].copy_from_slice(&paragraphs.to_le_bytes());
    file
}

/// Overwrites `bytes` at `at`.
pub(super) fn patched(mut file: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}
