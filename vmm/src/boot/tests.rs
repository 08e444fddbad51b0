//! Whole images, as a guest finds them.

use std::io::Write;

use linux_loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};

use super::layout::{ACPI, CMDLINE, EBDA, PVH_START_INFO, ZERO_PAGE};
use super::samples::{self, CODE, ELF_ENTRY, ELF_START, PVH_ENTRY, ehdr, patched, phdr, setup};
use super::*;

const MIB: u64 = 1 << 20;
const FIRST_PROGRAM: usize = ehdr::LEN;

fn ram(bytes: u64) -> RamLayout {
    RamLayout::new(bytes).unwrap()
}

fn load_with(kernel: &[u8], protocol: Protocol) -> Result<BootImage, BootError> {
    load(&BootRequest {
        protocol,
        cmdline: "console=ttyS0",
        ..BootRequest::new(kernel, ram(16 * MIB))
    })
}

fn refused(kernel: &[u8]) -> String {
    load_with(kernel, Protocol::Auto).unwrap_err().to_string()
}

fn bytes(image: &BootImage, start: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    image.staging.read_slice(&mut bytes, GuestAddress(start)).unwrap();
    bytes
}

fn e820(params: &boot_params) -> Vec<(u64, u64, u32)> {
    let table = params.e820_table;
    table[..params.e820_entries.into()].iter().map(|e| (e.addr, e.size, e.r#type)).collect()
}

#[test]
fn an_elf_kernel_starts_by_the_64_bit_protocol_with_a_zero_page() {
    let image = load(&BootRequest {
        cmdline: "console=ttyS0 quiet",
        initrd: Some(b"070701"),
        mp_table: Some(CpuCount::new(2).unwrap()),
        ..BootRequest::new(&samples::elf(), ram(16 * MIB))
    })
    .unwrap();
    assert_eq!(
        (image.entry.mode, image.entry.rip.0, image.entry.rsi),
        (Mode::Linux64, ELF_ENTRY, ZERO_PAGE)
    );
    assert_eq!(bytes(&image, ELF_START, CODE.len()), CODE);
    assert_eq!(bytes(&image, CMDLINE.0, 20), b"console=ttyS0 quiet\0");
    assert_eq!(bytes(&image, EBDA.0, 4), b"_MP_");

    let params: boot_params = image.staging.read_obj(ZERO_PAGE).unwrap();
    assert_eq!(
        e820(&params),
        [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (0x10_0000, 15 * MIB, 1)]
    );
    let header = params.hdr;
    let (cmdline, initrd, len) = (header.cmd_line_ptr, header.ramdisk_image, header.ramdisk_size);
    assert_eq!((cmdline, initrd, len), (0x2_0000, (16 * MIB - 4096) as u32, 6));
    assert_eq!(bytes(&image, initrd.into(), 6), b"070701");
}

#[test]
fn both_protocols_hand_over_the_rsdp_if_there_is_one() {
    let kernel = samples::elf();
    let machine = AcpiMachine { cpus: CpuCount::new(2).unwrap(), virtio: &[] };
    for (acpi, signature, address) in [(Some(machine), *b"RSD PTR ", ACPI.0), (None, [0; 8], 0)] {
        let request = BootRequest { acpi, ..BootRequest::new(&kernel, ram(16 * MIB)) };
        let image = load(&request).unwrap();
        let params: boot_params = image.staging.read_obj(ZERO_PAGE).unwrap();
        let rsdp = params.acpi_rsdp_addr;
        assert_eq!((bytes(&image, ACPI.0, 8), rsdp), (signature.to_vec(), address));
        // Documentation/arch/x86/zero-page.rst.
        assert_eq!(bytes(&image, ZERO_PAGE.0 + 0x70, 8), address.to_le_bytes());
        // The map keeps the kernel off it.
        let covers = |&(start, len, kind): &(u64, u64, u32)| {
            kind == 2 && start <= ACPI.0 && ACPI.0 + PAGE_SIZE <= start + len
        };
        assert!(e820(&params).iter().any(covers));

        let image = load(&BootRequest { protocol: Protocol::Pvh, ..request }).unwrap();
        let info: hvm_start_info = image.staging.read_obj(PVH_START_INFO).unwrap();
        assert_eq!((bytes(&image, ACPI.0, 8), info.rsdp_paddr), (signature.to_vec(), address));
    }
}

#[test]
fn a_tiny_guest_costs_few_pages() {
    let kernel = samples::elf();
    let small = BootRequest {
        identity: IdentityMap { pages: IdentityPages::OneGib, ..IdentityMap::default() },
        ..BootRequest::new(&kernel, ram(2 * MIB))
    };
    let pages = |request: &BootRequest<'_>| {
        let mut last = None;
        let nr_pages = load(request).unwrap().for_each_page(|at, page| {
            assert!(last < Some(at) && page.iter().any(|&byte| byte != 0));
            last = Some(at);
            Ok::<(), ()>(())
        });
        nr_pages.unwrap()
    };
    // Code, GDT, zero page, PML4, PDPT; with 2 MiB pages four page directories more. The empty command line is all zeros.
    assert_eq!(pages(&small), 5);
    assert_eq!(pages(&BootRequest::new(&kernel, ram(2 * MIB))), 9);
    // Code, GDT, start info.
    assert_eq!(pages(&BootRequest { protocol: Protocol::Pvh, ..small }), 3);
}

#[test]
fn an_error_of_the_sink_ends_the_copy() {
    let image = load_with(&samples::elf(), Protocol::Auto).unwrap();
    let mut calls = 0;
    let result = image.for_each_page(|_, _| {
        calls += 1;
        if calls == 2 { Err("full") } else { Ok(()) }
    });
    assert_eq!((result, calls), (Err("full"), 2));
}

#[test]
fn pvh_hands_over_a_start_info_with_memory_map_and_module() {
    let image = load(&BootRequest {
        protocol: Protocol::Pvh,
        initrd: Some(&[7; 5000]),
        ..BootRequest::new(&samples::elf(), ram(5 << 30))
    })
    .unwrap();
    assert_eq!(image.entry.mode, Mode::Pvh);
    assert_eq!((image.entry.rip.0, image.entry.rbx), (PVH_ENTRY.into(), PVH_START_INFO));

    let info: hvm_start_info = image.staging.read_obj(PVH_START_INFO).unwrap();
    assert_eq!((info.magic, info.version, info.cmdline_paddr), (0x336e_c578, 1, CMDLINE.0));
    let map: Vec<_> = (0..u64::from(info.memmap_entries))
        .map(|index| {
            let at = GuestAddress(info.memmap_paddr + index * 24);
            let entry: hvm_memmap_table_entry = image.staging.read_obj(at).unwrap();
            (entry.addr, entry.size, entry.type_)
        })
        .collect();
    let high = (0x1_0000_0000, 2 << 30, 1);
    assert_eq!(map, [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (0x10_0000, 0xbff0_0000, 1), high]);
    assert_eq!(info.nr_modules, 1);
    let module: hvm_modlist_entry =
        image.staging.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (0x8000_0000 - 8192, 5000));
}

#[test]
fn auto_takes_pvh_only_when_the_elf_entry_is_none() {
    let auto = |file: &[u8]| load_with(file, Protocol::Auto).map(|image| image.entry.mode);
    assert_eq!(auto(&samples::elf()).unwrap(), Mode::Linux64);
    let pvh_only = patched(samples::elf(), ehdr::ENTRY, &[0; 8]);
    assert_eq!(auto(&pvh_only).unwrap(), Mode::Pvh);
    assert!(matches!(load_with(&pvh_only, Protocol::Linux64), Err(BootError::EntryOutside { .. })));
    let neither = patched(samples::elf_with(b""), ehdr::ENTRY, &[0; 8]);
    assert!(refused(&neither).contains("64-bit entry point 0x0 lies in no segment"));
}

#[test]
fn a_missing_or_damaged_pvh_note_is_no_pvh_entry() {
    let xen = samples::note(b"Xen\0", 18, &PVH_ENTRY.to_le_bytes());
    load_with(&samples::elf_with(&xen), Protocol::Pvh).unwrap();
    let wrong = [
        &xen[..xen.len() - 1],
        b"",
        &samples::note(b"Xen\0", 17, &[0; 4]),
        &samples::note(b"GNU\0", 18, &[0; 4]),
    ];
    for notes in wrong {
        assert!(matches!(
            load_with(&samples::elf_with(notes), Protocol::Pvh),
            Err(BootError::NoPvhEntry | BootError::Loader(_))
        ));
    }
    let outside = samples::note(b"Xen\0", 18, &[0; 4]);
    assert!(matches!(
        load_with(&samples::elf_with(&outside), Protocol::Pvh),
        Err(BootError::EntryOutside { .. })
    ));
}

#[test]
fn elf_files_of_other_kinds_are_named_by_the_field_that_is_wrong() {
    for (at, value, expected) in [
        (ehdr::CLASS, 1, "class is 0x1"),
        (ehdr::TYPE, 3, "type is 0x3"),
        (ehdr::MACHINE, 183, "machine is 0xb7"),
        (ehdr::PHNUM, 0, "no segment to load"),
        (ehdr::PHOFF, 8, "program header offset is 0x8"),
    ] {
        let text = refused(&patched(samples::elf(), at, &[value]));
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn an_elf_file_cut_anywhere_is_truncated() {
    let file = samples::elf();
    for keep in [4, ehdr::LEN - 1, ehdr::LEN, FIRST_PROGRAM + 100, file.len() - 1] {
        let text = refused(&file[..keep]);
        assert!(text.contains("cut short") && text.contains(&keep.to_string()), "{text}");
    }
    let far = patched(file, FIRST_PROGRAM + phdr::OFFSET, &u64::MAX.to_le_bytes());
    assert!(refused(&far).contains("its segment ends at byte"));
}

#[test]
fn a_kernel_that_does_not_fit_is_told_how_much_it_needs() {
    let at =
        |field, value: u64| patched(samples::elf(), FIRST_PROGRAM + field, &value.to_le_bytes());
    let text = refused(&at(phdr::MEMSZ, 40 * MIB));
    assert!(text.contains("ends at 0x1000000") && text.contains("at least 41 MiB"), "{text}");
    let text = refused(&at(phdr::PADDR, 0xc000_0000));
    assert!(text.contains("MMIO hole"), "{text}");
    let text = refused(&at(phdr::PADDR, 0x9000));
    assert!(text.contains("link it at 1 MiB or above"), "{text}");
    let text = refused(&at(phdr::PADDR, u64::MAX - 5));
    assert!(text.contains("program header 0") && text.contains("wraps"), "{text}");
    let text = refused(&at(phdr::MEMSZ, 1));
    assert!(text.contains("larger in the file than in memory"), "{text}");
    let text = refused(&at(phdr::MEMSZ, 0));
    assert!(text.contains("larger in the file than in memory"), "{text}");
    let text = refused(&at(phdr::FILESZ, 0));
    assert!(text.contains("entry point"), "{text}");
}

#[test]
fn segments_that_copy_the_file_many_times_over_are_refused() {
    let file = samples::elf();
    let program = file[FIRST_PROGRAM..FIRST_PROGRAM + phdr::LEN].to_vec();
    let mut many = file[..ehdr::LEN].to_vec();
    let count = 200_u16;
    many[ehdr::PHNUM..ehdr::PHNUM + 2].copy_from_slice(&count.to_le_bytes());
    for _ in 0..count {
        many.extend(patched(program.clone(), phdr::FILESZ, &0x2000_u64.to_le_bytes()));
    }
    assert!(refused(&many).contains("more bytes than the file"));
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry_with_its_own_header_and_limits() {
    let image = load(&BootRequest {
        cmdline: &"c".repeat(samples::BZIMAGE_CMDLINE as usize),
        initrd: Some(&[1; 100]),
        ..BootRequest::new(&samples::bzimage(b"payload"), ram(16 * MIB))
    })
    .unwrap();
    assert_eq!(
        (image.entry.mode, image.entry.rip.0),
        (Mode::Linux64, samples::BZIMAGE_START + 0x200)
    );
    assert_eq!(image.kernel_end.0, samples::BZIMAGE_START + u64::from(samples::BZIMAGE_INIT_SIZE));
    assert_eq!(bytes(&image, samples::BZIMAGE_START + 0x300, 7), b"payload");
    assert_eq!(image.initrd.unwrap().start.0, u64::from(samples::BZIMAGE_INITRD_MAX) + 1 - 4096);

    let params: boot_params = image.staging.read_obj(ZERO_PAGE).unwrap();
    let (version, loader, init_size) =
        (params.hdr.version, params.hdr.type_of_loader, params.hdr.init_size);
    assert_eq!((version, loader, init_size), (0x20f, 0xff, samples::BZIMAGE_INIT_SIZE));
    // The file's bytes behind the header are code.
    assert!(bytes(&image, ZERO_PAGE.0 + setup::END as u64, 16).iter().all(|&byte| byte == 0));
}

#[test]
fn a_bzimage_that_cannot_start_in_64_bit_mode_says_what_it_lacks() {
    for (at, value, expected) in [
        (setup::VERSION, 0x0b, "boot protocol 2.11"),
        (setup::LOADFLAGS, 0, "zImage"),
        (setup::XLOADFLAGS, 0, "XLF_KERNEL_64"),
        (setup::BOOT_FLAG, 0, "boot signature"),
        (setup::HEADER_LEN, 0x20, "predates protocol 2.12"),
        (setup::SETUP_SECTS, 200, "cut short"),
        (setup::SYSSIZE + 1, 0xff, "cut short"),
        (setup::PREF_ADDRESS + 7, 0xff, "into the MMIO hole"),
        (setup::INIT_SIZE + 3, 0x10, "give it at least"),
    ] {
        let text = refused(&patched(samples::bzimage(b"payload"), at, &[value]));
        let expected = if expected == "into the MMIO hole" { "MMIO hole" } else { expected };
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let long = "c".repeat(samples::BZIMAGE_CMDLINE as usize + 1);
    let kernel = samples::bzimage(b"");
    let request = BootRequest { cmdline: &long, ..BootRequest::new(&kernel, ram(16 * MIB)) };
    assert!(matches!(load(&request), Err(BootError::CmdlineTooLong { len: 301, limit: 300 })));
}

#[test]
fn the_vmlinux_in_a_bzimage_is_started_when_asked_for_and_always_by_pvh() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&samples::elf()).unwrap();
    let file = samples::bzimage(&encoder.finish().unwrap());
    let request = BootRequest::new(&file, ram(16 * MIB));
    let entry = |request: &BootRequest<'_>| load(request).unwrap().entry.rip.0;
    assert_eq!(entry(&request), samples::BZIMAGE_START + 0x200);
    assert_eq!(entry(&BootRequest { packing: Packing::Unpack, ..request }), ELF_ENTRY);
    assert_eq!(entry(&BootRequest { protocol: Protocol::Pvh, ..request }), u64::from(PVH_ENTRY));
}
