//! The checksums of an image's pages: in memory, or in a file of which a part is read when a page of it is.
//!
//! A machine of many GiB that touches few of its pages needs few of their checksums. Each part of the file has a digest, which is
//! known to be right, so what was changed since is found out before a page is taken for good by it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use twox_hash::XxHash3_64;

use crate::addr::PageSize;

use super::file::ReadError;

/// Checksums of a part: those of a block.
const PART: usize = PageSize::Size2M.frames() as usize;
/// Bytes of a checksum.
const SUM: usize = 8;

/// The checksum of each page, as [`page_sum`](super::page_sum) has it. Pages without one are not checked.
#[derive(Clone, Debug, Default)]
pub struct Sums(Arc<Table>);

#[derive(Debug)]
enum Table {
    /// All of them.
    There(Vec<u64>),
    /// They lie in a file.
    Filed(Filed),
}

#[derive(Debug)]
struct Filed {
    file: File,
    path: PathBuf,
    digests: Vec<u64>,
    /// The parts that were read.
    parts: Box<[OnceLock<Box<[u64]>>]>,
}

impl Sums {
    /// Those in the file at `path`, eight bytes each, little-endian, in parts of 512: `digests` has the XXH3-64 of each part's
    /// bytes.
    ///
    /// # Errors
    /// What the system says, or that the file has another length.
    pub fn in_file(path: &Path, digests: Vec<u64>) -> io::Result<Sums> {
        let file = File::open(path)?;
        let (has, needs) = (file.metadata()?.len(), (digests.len() * PART * SUM) as u64);
        if has != needs {
            let what = format!("{has} bytes are there, and {needs} are needed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let parts = digests.iter().map(|_| OnceLock::new()).collect();
        Ok(Sums(Arc::new(Table::Filed(Filed { file, path: path.to_owned(), digests, parts }))))
    }

    /// The digest of each part of `sums`, the last of which may be shorter.
    pub fn digests(sums: &[u64]) -> Vec<u64> {
        let digest = |part: &[u64]| {
            let bytes: Vec<u8> = part.iter().flat_map(|sum| sum.to_le_bytes()).collect();
            XxHash3_64::oneshot(&bytes)
        };
        sums.chunks(PART).map(digest).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &*self.0 {
            Table::There(sums) => sums.len(),
            Table::Filed(filed) => filed.digests.len() * PART,
        }
    }

    /// Whether no page has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// That of `page`, if it has one.
    ///
    /// # Errors
    /// [`ReadError`]: the part that it lies in cannot be read, or is not what was written.
    pub fn of(&self, page: u64) -> Result<Option<u64>, ReadError> {
        let page = page as usize;
        match &*self.0 {
            Table::There(sums) => Ok(sums.get(page).copied()),
            Table::Filed(filed) if page / PART >= filed.digests.len() => Ok(None),
            Table::Filed(filed) => Ok(Some(filed.part(page / PART)?[page % PART])),
        }
    }

    /// All of them.
    ///
    /// # Errors
    /// As [`Sums::of`].
    pub fn all(&self) -> Result<Vec<u64>, ReadError> {
        match &*self.0 {
            Table::There(sums) => Ok(sums.clone()),
            Table::Filed(filed) => {
                let parts = (0..filed.digests.len()).map(|part| filed.part(part));
                Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
            }
        }
    }
}

impl Filed {
    fn part(&self, part: usize) -> Result<&[u64], ReadError> {
        if let Some(sums) = self.parts[part].get() {
            return Ok(sums);
        }
        let mut bytes = vec![0; PART * SUM];
        let at = part * PART * SUM;
        self.file.read_exact_at(&mut bytes, at as u64).map_err(|error| {
            let (path, cause) = (self.path.clone(), error.to_string());
            ReadError::NoSums { path, page: (part * PART) as u64, cause }
        })?;
        if XxHash3_64::oneshot(&bytes) != self.digests[part] {
            let (path, cause) = (self.path.clone(), "they are not what was written".to_owned());
            return Err(ReadError::NoSums { path, page: (part * PART) as u64, cause });
        }
        let (words, _) = bytes.as_chunks();
        let sums = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        // Who was faster has read the same.
        Ok(self.parts[part].get_or_init(|| sums))
    }
}

impl Default for Table {
    fn default() -> Table {
        Table::There(Vec::new())
    }
}

impl From<Vec<u64>> for Sums {
    fn from(sums: Vec<u64>) -> Sums {
        Sums(Arc::new(Table::There(sums)))
    }
}

#[cfg(test)]
mod tests {
    use ::tests::Scratch;

    use super::*;

    #[test]
    fn a_part_that_was_changed_is_found_out_and_the_others_are_good() {
        let folder = Scratch::new();
        let sums: Vec<u64> = (0..3 * PART as u64).map(|page| page * page).collect();
        let mut bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let path = folder.write("sums", &bytes);
        let digests = Sums::digests(&sums);
        let good = Sums::in_file(&path, digests.clone()).unwrap();
        assert_eq!(
            (good.of(700).unwrap(), good.of(3 * PART as u64).unwrap()),
            (Some(490_000), None)
        );
        assert_eq!(good.all().unwrap(), sums);
        bytes[700 * SUM] ^= 1;
        let path = folder.write("sums", &bytes);
        let bad = Sums::in_file(&path, digests.clone()).unwrap();
        assert!(matches!(bad.of(513), Err(ReadError::NoSums { page: 512, .. })));
        assert_eq!((bad.of(511).unwrap(), bad.of(1024).unwrap()), (Some(511 * 511), Some(1 << 20)));
        assert!(bad.all().is_err());
        folder.write("sums", &bytes[1..]);
        assert!(Sums::in_file(&path, digests).is_err());
    }
}
