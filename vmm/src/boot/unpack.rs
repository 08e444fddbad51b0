//! Takes the vmlinux out of a bzImage.
//!
//! The packed kernel lies at `payload_offset` (boot.rst, "Details of Header Fields"); its last four bytes are the size it
//! unpacks to: gzip has them in its trailer, for the others the kernel's build appends them. Unpacking on the host is faster
//! than in the guest, most of all where ring 0 is emulated, and it is the only way to start such a kernel by PVH.
//!
//! What comes out is an ELF file followed by the relocations for address randomisation, which are not used: the kernel runs
//! where it was linked.

use std::io::Read;

use flate2::read::GzDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::BootError;
use super::bzimage::BzImage;

/// Most bytes a kernel may unpack to.
pub const UNPACKED_MAX: u64 = 512 << 20;

/// Size of the trailing size.
const SIZE_LEN: usize = 4;

/// "Legacy" LZ4 frames: this magic, then blocks of a little-endian u32 size and so many packed bytes, to the end.
const LZ4_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
/// A block of a legacy frame unpacks to at most this many bytes.
const LZ4_BLOCK: usize = 8 << 20;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Magic numbers of what a kernel's build also offers.
const UNSUPPORTED: &[(&[u8], &str)] = &[
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (b"BZh", "bzip2"),
    (&[0x5d, 0, 0], "lzma"),
    (&[0x89, b'L', b'Z', b'O'], "lzo"),
    (&[0x7f, b'E', b'L', b'F'], "nothing"),
];

/// The unpacked vmlinux of a bzImage.
///
/// # Errors
/// [`BootError::BadBzImage`] and [`BootError::Truncated`] for the bzImage, [`BootError::Packing`] for a compression that is
/// not known, [`BootError::Unpack`] and [`BootError::UnpackLimit`] for the packed kernel.
pub fn vmlinux(bzimage: &[u8]) -> Result<Vec<u8>, BootError> {
    unpack(BzImage::parse(bzimage)?.payload()?)
}

pub(super) fn unpack(payload: &[u8]) -> Result<Vec<u8>, BootError> {
    let (packed, size) = payload.split_last_chunk::<SIZE_LEN>().ok_or_else(|| unknown(payload))?;
    let method = method(packed)?;
    let claimed = u64::from(u32::from_le_bytes(*size));
    if claimed > UNPACKED_MAX {
        return Err(BootError::UnpackLimit { claimed, limit: UNPACKED_MAX });
    }
    let unpacked = match method {
        Method::Lz4 => lz4_legacy(&packed[LZ4_MAGIC.len()..], claimed as usize),
        // The size is part of the format.
        Method::Gzip => drain(GzDecoder::new(payload), claimed),
        Method::Zstd => StreamingDecoder::new(packed)
            .map_err(|error| error.to_string())
            .and_then(|decoder| drain(decoder, claimed)),
    };
    unpacked
        .and_then(|bytes| match bytes.len() as u64 {
            len if len == claimed => Ok(bytes),
            len => Err(format!("it has {len} bytes or more instead of {claimed}")),
        })
        .map_err(|reason| BootError::Unpack { method: method.name(), reason })
}

#[derive(Clone, Copy)]
enum Method {
    Lz4,
    Gzip,
    Zstd,
}

impl Method {
    const fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

fn method(packed: &[u8]) -> Result<Method, BootError> {
    let known = [(LZ4_MAGIC, Method::Lz4), (GZIP_MAGIC, Method::Gzip), (ZSTD_MAGIC, Method::Zstd)];
    known
        .into_iter()
        .find(|(magic, _)| packed.starts_with(magic))
        .map(|(_, method)| method)
        .ok_or_else(|| unknown(packed))
}

fn unknown(packed: &[u8]) -> BootError {
    let known = UNSUPPORTED.iter().find(|(magic, _)| packed.starts_with(magic));
    let method = known.map_or_else(
        || format!("an unknown method (it starts with {:02x?})", &packed[..packed.len().min(4)]),
        |(_, name)| (*name).to_owned(),
    );
    BootError::Packing { method }
}

/// Reads one byte more than claimed at most, so that too much is seen as such.
fn drain(source: impl Read, claimed: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    reserve(&mut bytes, claimed as usize)?;
    source.take(claimed + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn lz4_legacy(mut blocks: &[u8], claimed: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    reserve(&mut bytes, claimed)?;
    while let Some((len, rest)) = blocks.split_first_chunk::<SIZE_LEN>() {
        let len = u32::from_le_bytes(*len) as usize;
        let (block, rest) = rest
            .split_at_checked(len)
            .ok_or_else(|| format!("a block of {len} bytes is cut short"))?;
        let start = bytes.len();
        bytes.resize(claimed.min(start + LZ4_BLOCK), 0);
        let unpacked = lz4_flex::block::decompress_into(block, &mut bytes[start..])
            .map_err(|error| error.to_string())?;
        bytes.truncate(start + unpacked);
        blocks = rest;
    }
    Ok(bytes)
}

/// Up to half a GiB at the word of a file: an error, not an abort, when there is no memory.
fn reserve(bytes: &mut Vec<u8>, len: usize) -> Result<(), String> {
    // One more, or the read of the end of the stream would grow it.
    bytes.try_reserve_exact(len + 1).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn content() -> Vec<u8> {
        (0..3_u32 << 20).map(|i| (i >> 7) as u8).collect()
    }

    fn sized(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
        packed.extend((size as u32).to_le_bytes());
        packed
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(content: &[u8], block: usize) -> Vec<u8> {
        let mut packed = LZ4_MAGIC.to_vec();
        for chunk in content.chunks(block) {
            let chunk = lz4_flex::block::compress(chunk);
            packed.extend((chunk.len() as u32).to_le_bytes());
            packed.extend(chunk);
        }
        sized(packed, content.len())
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        let packed =
            ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest);
        sized(packed, content.len())
    }

    #[test]
    fn gzip_lz4_and_zstd_give_back_what_was_packed() {
        let content = content();
        assert!(unpack(&gzip(&content)).unwrap() == content);
        assert!(unpack(&lz4(&content, 1 << 20)).unwrap() == content);
        assert!(unpack(&zstd(&content)).unwrap() == content);
    }

    #[test]
    fn a_lz4_block_may_be_as_large_as_the_format_allows() {
        let content = vec![7; LZ4_BLOCK + 5];
        assert!(unpack(&lz4(&content, LZ4_BLOCK)).unwrap() == content);
    }

    #[test]
    fn more_or_less_than_the_size_says_is_an_error() {
        let content = content();
        for mut payload in [gzip(&content), lz4(&content, 1 << 20), zstd(&content)] {
            let at = payload.len() - SIZE_LEN;
            for size in [content.len() - 1, content.len() + 1, 0] {
                payload[at..].copy_from_slice(&(size as u32).to_le_bytes());
                assert!(matches!(unpack(&payload), Err(BootError::Unpack { .. })));
            }
        }
    }

    #[test]
    fn a_claim_beyond_the_limit_is_refused_before_anything_is_allocated() {
        let text = unpack(&sized(LZ4_MAGIC.to_vec(), u32::MAX as usize)).unwrap_err().to_string();
        assert!(text.contains("4294967295") && text.contains("536870912"), "{text}");
    }

    #[test]
    fn a_known_but_unsupported_compression_is_named() {
        let text = unpack(b"\xfd7zXZ\0...........").unwrap_err().to_string();
        assert!(text.contains("packed with xz"), "{text}");
        let text = unpack(b"????....").unwrap_err().to_string();
        assert!(text.contains("unknown method") && text.contains("3f, 3f"), "{text}");
        assert!(matches!(unpack(b"ab"), Err(BootError::Packing { .. })));
    }

    #[test]
    fn a_cut_payload_is_an_error_whatever_the_method() {
        let content = content();
        for payload in [gzip(&content), lz4(&content, 1 << 20), zstd(&content)] {
            for keep in [8, 100, payload.len() / 2, payload.len() - SIZE_LEN - 1] {
                unpack(&sized(payload[..keep].to_vec(), content.len())).unwrap_err();
            }
        }
    }
}
