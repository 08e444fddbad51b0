//! Payloads that are compressed.

use std::io::{self, IoSlice};

use zstd::bulk::{Compressor, Decompressor};

use super::StreamError;
use crate::postcopy::wire::{Encoding, PagesHeader, WireError};

/// Zstandard's fastest level of those that it counts from one: pages are packed while a guest waits for others.
const ZSTD_LEVEL: i32 = 1;

/// Packs the payloads of one stream, in memory that it keeps from one to the next.
#[derive(Default)]
pub struct Packer {
    zstd: Option<Compressor<'static>>,
    gathered: Vec<u8>,
    packed: Vec<u8>,
}

impl Packer {
    /// One that has no memory yet.
    pub fn new() -> Packer {
        Packer::default()
    }

    /// Packs `pages`, the pages of `header` that are not zeroes, and says so in the header; none where that would not make them
    /// smaller, and then the header is as it was. 2 MiB keep a processor busy for up to some milliseconds.
    ///
    /// # Errors
    /// [`StreamError::Buffers`] if these are not as many bytes as the header has pages; [`StreamError::Pack`].
    pub fn pack(
        &mut self,
        header: &mut PagesHeader,
        encoding: Encoding,
        pages: &[IoSlice<'_>],
    ) -> Result<Option<&[u8]>, StreamError> {
        let (needed, given) = (header.raw_bytes(), pages.iter().map(|slice| slice.len()).sum());
        if given != needed {
            return Err(StreamError::Buffers { given, needed, encoding: Encoding::Raw });
        }
        if needed == 0 || encoding == Encoding::Raw {
            return Ok(None);
        }
        let Packer { zstd, gathered, packed } = self;
        let raw: &[u8] = match pages {
            [one] => one,
            _ => {
                gathered.clear();
                pages.iter().for_each(|slice| gathered.extend_from_slice(slice));
                gathered
            }
        };
        let bytes = match encoding {
            Encoding::Raw => return Ok(None),
            Encoding::Lz4 => {
                grow(packed, lz4_flex::block::get_maximum_output_size(raw.len()));
                lz4_flex::block::compress_into(raw, packed)
                    .map_err(|error| StreamError::Pack(io::Error::other(error)))?
            }
            Encoding::Zstd => {
                let compressor = match zstd {
                    Some(compressor) => compressor,
                    none => none.insert(Compressor::new(ZSTD_LEVEL).map_err(StreamError::Pack)?),
                };
                grow(packed, zstd::zstd_safe::compress_bound(raw.len()));
                compressor.compress_to_buffer(raw, &mut packed[..]).map_err(StreamError::Pack)?
            }
        };
        if bytes >= needed {
            return Ok(None);
        }
        header.set_payload(encoding, bytes)?;
        Ok(Some(&packed[..bytes]))
    }
}

/// Unpacks the payloads of one stream.
#[derive(Default)]
pub(super) struct Unpacker {
    zstd: Option<Decompressor<'static>>,
}

impl Unpacker {
    /// Unpacks `packed`, the payload of `header`, which has to fill `into` exactly.
    pub(super) fn unpack(
        &mut self,
        header: &PagesHeader,
        packed: &[u8],
        into: &mut [u8],
    ) -> Result<(), StreamError> {
        let needed = into.len();
        let bytes = match header.encoding() {
            Encoding::Raw => None,
            Encoding::Lz4 => lz4_flex::block::decompress_into(packed, into).ok(),
            Encoding::Zstd => {
                let decompressor = match &mut self.zstd {
                    Some(decompressor) => decompressor,
                    none => none.insert(Decompressor::new().map_err(StreamError::Pack)?),
                };
                decompressor.decompress_to_buffer(packed, into).ok()
            }
        };
        if bytes == Some(needed) {
            Ok(())
        } else {
            Err(WireError::Compressed(header.first()).into())
        }
    }
}

/// Makes `buffer` at least `bytes` long.
pub(super) fn grow(buffer: &mut Vec<u8>, bytes: usize) {
    if buffer.len() < bytes {
        buffer.resize(bytes, 0);
    }
}
