//! What an image is made of: a file of raw memory, or several in layers, with or without a checksum for each page.

use std::path::{Path, PathBuf};

use twox_hash::XxHash3_64;

use crate::addr::FrameNo;
use crate::pool::Pool;
use crate::sync::Arc;

use super::Image;
use super::file::{ImageError, Layer, ReadError};

/// An image of several files, or one that is checked. All files have the same pages, of which each counts in one file.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// The files. The size of the image is that of the first, which messages name.
    pub files: Vec<PathBuf>,
    /// For each page the file that has it. What is missing here is in the first.
    pub of: Vec<u8>,
    /// The checksum of each page, as [`page_sum`] has it. Pages without one are not checked.
    pub sums: Vec<u64>,
}

/// The checksum of a page: XXH3-64 of its bytes, with 1 for 0; and 0 for a page of zeroes.
pub fn page_sum(page: &[u8]) -> u64 {
    match page.iter().all(|&byte| byte == 0) {
        true => 0,
        false => XxHash3_64::oneshot(page).max(1),
    }
}

/// The pages of an image in the order in which they were loaded, as far as it was noted.
#[derive(Clone, Debug, Default)]
pub struct Order(std::sync::Arc<std::sync::Mutex<Vec<u32>>>);

impl Order {
    /// Pages that are noted at most: more than 64 MiB take longer to read than a guest should wait to start.
    const LONGEST: usize = 1 << 14;

    pub(super) fn note(&self, page: u64, pages: u64) {
        let mut noted = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if noted.len() < Order::LONGEST {
            noted.extend((page..page + pages).map(|page| page as u32));
        }
    }

    /// What was noted so far.
    pub fn pages(&self) -> Vec<u32> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Where the pages come from.
#[derive(Debug)]
pub(super) struct Source {
    layers: Vec<Layer>,
    of: Box<[u8]>,
    sums: Box<[u64]>,
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
        let Layers { files, of, sums } = layers;
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
        Ok(Image::new(pool, pages, Source { layers, of: of.into(), sums: sums.into() }))
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
        let end = page + pages;
        let mut next = page;
        while next < end {
            let layer = self.layer(next);
            let run = (next..end).take_while(|&page| self.layer(page) == layer).count() as u64;
            let file = &self.layers[layer];
            file.read(pool, next, first.add(next - page), run, |page, bytes| {
                match self.sums.get(page as usize) {
                    Some(&sum) if sum != page_sum(bytes) => {
                        Err(ReadError::Damaged { path: file.path().to_owned(), page })
                    }
                    _ => Ok(()),
                }
            })?;
            next += run;
        }
        Ok(())
    }

    fn layer(&self, page: u64) -> usize {
        self.of.get(page as usize).copied().unwrap_or(0).into()
    }
}
