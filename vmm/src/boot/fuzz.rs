//! No input panics, allocates without bound or writes where it may not.

use std::io::Write;

use proptest::prelude::*;

use super::layout::HIGH_MEMORY;
use super::*;
use super::{samples, unpack};

const RAM: u64 = 8 << 20;

/// Loads it every way; what loads must be inside of RAM and, but for the boot tables, above low memory.
fn survive(file: &[u8]) {
    for protocol in [Protocol::Auto, Protocol::Linux64, Protocol::Pvh] {
        for packing in [Packing::AsIs, Packing::Unpack] {
            let ram = RamLayout::new(RAM).unwrap();
            let request = BootRequest {
                protocol,
                packing,
                initrd: Some(&[1; 10_000]),
                ..BootRequest::new(file, ram)
            };
            let Ok(image) = load(&request) else { continue };
            assert!(image.kernel_end.0 <= RAM && image.entry.rip.0 >= HIGH_MEMORY);
            assert!(image.initrd.unwrap().start >= image.kernel_end);
            assert!(image.extents.is_sorted_by(|a, b| a.end() < b.start.0));
            assert!(image.extents.iter().all(|extent| extent.end() <= RAM));
        }
    }
}

fn bzimages() -> Vec<Vec<u8>> {
    let elf = samples::elf();
    let sized = |mut packed: Vec<u8>| {
        packed.extend((elf.len() as u32).to_le_bytes());
        samples::bzimage(&packed)
    };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&elf).unwrap();
    let block = lz4_flex::block::compress(&elf);
    let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
    lz4.extend((block.len() as u32).to_le_bytes());
    lz4.extend(block);
    let zstd =
        ruzstd::encoding::compress_to_vec(&elf[..], ruzstd::encoding::CompressionLevel::Fastest);
    vec![samples::bzimage(&gzip.finish().unwrap()), sized(lz4), sized(zstd)]
}

/// Values at which arithmetic goes wrong.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..0x1000_u64,
        Just(u64::MAX),
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..64_u32).prop_map(|bit| (1_u64 << bit).wrapping_neg()),
        (0..64_u64).prop_map(|less| RAM - less),
    ]
}

/// (position as a fraction of the file, value, bytes of it)
fn patch() -> impl Strategy<Value = (usize, u64, usize)> {
    (any::<usize>(), value(), 1..=8_usize)
}

fn apply(file: &mut [u8], headers: usize, patches: &[(usize, u64, usize)]) {
    for &(at, value, len) in patches {
        let at = at % headers;
        let end = file.len().min(at + len);
        let bytes = value.to_le_bytes();
        file[at..end].copy_from_slice(&bytes[..end - at]);
    }
}

#[test]
fn the_unchanged_samples_load() {
    for file in bzimages() {
        let ram = RamLayout::new(RAM).unwrap();
        unpack::vmlinux(&file).unwrap();
        load(&BootRequest::new(&file, ram)).unwrap();
        survive(&file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn an_elf_with_any_headers_loads_or_is_refused(patches in prop::collection::vec(patch(), 1..6)) {
        let mut file = samples::elf();
        let headers = file.len();
        apply(&mut file, headers, &patches);
        survive(&file);
    }

    #[test]
    fn an_elf_field_at_its_own_offset_with_any_value(field in 0..22_usize, value in value()) {
        let mut file = samples::elf();
        apply(&mut file, usize::MAX, &[(field * 8, value, 8)]);
        survive(&file);
    }

    #[test]
    fn a_bzimage_with_any_header_loads_or_is_refused(which in 0..3_usize, patches in prop::collection::vec(patch(), 1..4)) {
        let mut file = bzimages().swap_remove(which);
        let at_header: Vec<_> = patches.iter().map(|&(at, value, len)| (0x1f1 + at % 0x77, value, len)).collect();
        apply(&mut file, usize::MAX, &at_header);
        survive(&file);
    }

    #[test]
    fn a_damaged_payload_unpacks_or_is_refused(which in 0..3_usize, patches in prop::collection::vec(patch(), 1..6)) {
        let mut file = bzimages().swap_remove(which);
        let payload = 1024 + 0x300;
        let len = file.len() - payload;
        apply(&mut file[payload..], len, &patches);
        survive(&file);
    }

    #[test]
    fn a_file_cut_anywhere_loads_or_is_refused(which in 0..4_usize, keep in any::<prop::sample::Index>()) {
        let mut files = bzimages();
        files.push(samples::elf());
        let file = &files[which];
        survive(&file[..keep.index(file.len())]);
    }

    #[test]
    fn any_command_line_is_taken_or_refused(cmdline in ".{0,3000}") {
        let kernel = samples::elf();
        let request = BootRequest { cmdline: &cmdline, ..BootRequest::new(&kernel, RamLayout::new(RAM).unwrap()) };
        let _ = load(&request);
    }

    #[test]
    fn random_bytes_behind_a_magic_number_are_refused_or_load(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let mut elf = samples::elf()[..20].to_vec();
        elf.extend(&bytes);
        survive(&elf);
        let mut file = bytes;
        file.resize(0x210, 0);
        file[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x66HdrS");
        survive(&file);
    }
}
