//! What an image is made of: a file of raw memory, or several in layers, with or without a checksum for each page.

use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

use crate::addr::FrameNo;
use crate::geometry::FRAME_BYTES;
use crate::pool::Pool;
use crate::sync::Arc;

use super::Image;
use super::file::{ImageError, Layer, ReadError};
use super::sums::Sums;

/// An image of several files, or one that is checked. All files have the same pages, of which each counts in one file.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// The files. The size of the image is that of the first, which messages name.
    pub files: Vec<PathBuf>,
    /// For each page the file that has it. What is missing here is in the first.
    pub of: Vec<u8>,
    /// The checksum of each page. Pages without one are not checked.
    pub sums: Sums,
    /// Whether one guest is going to lie over it and no other: then a page that it stores to before anybody has read it becomes its
    /// own as it is read, and is not kept for others. A hint: others may come, and read it once more.
    pub alone: bool,
}

/// What a page is compared with.
static ZEROES: [u8; 256] = [0; 256];

/// The checksum of a page: XXH3-64 of its bytes, with 1 for 0; and 0 for a page of zeroes.
pub fn page_sum(page: &[u8]) -> u64 {
    match is_zero(page) {
        true => 0,
        false => hash(page),
    }
}

/// Whether `page` is what `sum` is the checksum of.
fn is_sum_of(sum: u64, page: &[u8]) -> bool {
    // One look suffices: no page of zeroes has another checksum.
    match sum {
        0 => is_zero(page),
        sum => sum == hash(page),
    }
}

fn is_zero(page: &[u8]) -> bool {
    // In pieces, which are compared many bytes at a time.
    page.chunks(ZEROES.len()).all(|piece| *piece == ZEROES[..piece.len()])
}

fn hash(page: &[u8]) -> u64 {
    XxHash3_64::oneshot(page).max(1)
}

/// Where the pages come from.
#[derive(Debug)]
pub(super) struct Source {
    layers: Vec<Layer>,
    of: Box<[u8]>,
    sums: Sums,
    pub(super) alone: bool,
}

impl Image {
    /// The image in the file at `path`, none of it loaded. Its memory comes from `pool`.
    ///
    /// # Errors
    /// [`ImageError`]: the file is no image.
    pub(crate) fn open(pool: &Arc<Pool>, path: &Path) -> Result<Image, ImageError> {
        let files = vec![path.to_owned()];
        Image::of_layers(pool, Layers { files, ..Layers::default() })
    }

    /// The image that `layers` make, likewise.
    ///
    /// # Errors
    /// [`ImageError`]: one of the files is no image, or smaller than the first.
    pub(crate) fn of_layers(pool: &Arc<Pool>, layers: Layers) -> Result<Image, ImageError> {
        let Layers { files, of, sums, alone } = layers;
        let open = |path: &PathBuf| Layer::open(pool, path);
        let layers: Vec<Layer> = files.iter().map(open).collect::<Result<_, _>>()?;
        let Some(first) = layers.first() else { return Err(ImageError::Nothing) };
        let pages = first.nr_pages();
        if let Some(other) = layers.iter().find(|layer| layer.nr_pages() != pages) {
            let (path, has) = (other.path().to_owned(), other.nr_pages());
            return Err(ImageError::OtherSize { path, has, pages });
        }
        if of.iter().any(|&layer| usize::from(layer) >= layers.len()) {
            return Err(ImageError::Nothing);
        }
        Ok(Image::new(pool, pages, Source { layers, of: of.into(), sums, alone }))
    }

    /// The file's name; the first, where there are several.
    pub fn path(&self) -> &Path {
        self.source.layers[0].path()
    }
}

impl Source {
    /// Reads `pages` from `page` on to as many frames from `first` on, which nobody else uses.
    pub(super) fn read(
        &self,
        pool: &Pool,
        page: u64,
        first: FrameNo,
        pages: u64,
    ) -> Result<(), ReadError> {
        self.each_run(page, pages, |file, next, run| {
            file.read(pool, next, first.add(next - page), run, |page, bytes| {
                self.check(file, page, bytes)
            })
        })
    }

    /// Reads pages from `page` on, as many as `into` has room for.
    pub(super) fn read_into(&self, page: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let size = FRAME_BYTES as usize;
        self.each_run(page, (into.len() / size) as u64, |file, next, run| {
            let (at, bytes) = ((next - page) as usize * size, run as usize * size);
            file.read_into(next, &mut into[at..at + bytes], |page, bytes| {
                self.check(file, page, bytes)
            })
        })
    }

    /// Lets the system know that `pages` from `page` on are going to be read.
    pub(super) fn will_need(&self, page: u64, pages: u64) {
        let told = self.each_run(page, pages, |file, next, run| {
            file.will_need(next, run);
            Ok(())
        });
        debug_assert_eq!(told, Ok(()));
    }

    /// Calls `read` with every run of pages that lie in the same file: the file, the first, and how many.
    fn each_run(
        &self,
        page: u64,
        pages: u64,
        mut read: impl FnMut(&Layer, u64, u64) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let end = page + pages;
        let mut next = page;
        while next < end {
            let layer = self.layer(next);
            let run = (next..end).take_while(|&page| self.layer(page) == layer).count() as u64;
            read(&self.layers[layer], next, run)?;
            next += run;
        }
        Ok(())
    }

    fn check(&self, file: &Layer, page: u64, bytes: &[u8]) -> Result<(), ReadError> {
        match self.sums.of(page)? {
            Some(sum) if !is_sum_of(sum, bytes) => {
                Err(ReadError::Damaged { path: file.path().to_owned(), page })
            }
            _ => Ok(()),
        }
    }

    fn layer(&self, page: u64) -> usize {
        self.of.get(page as usize).copied().unwrap_or(0).into()
    }
}
