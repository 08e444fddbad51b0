//! What machines on one memory service have in common: a pool, the template that their RAM lies over, and other files that are
//! memory of theirs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use guest_mm::addr::PageSize;
use guest_mm::audit::AuditError;
use guest_mm::image::{Image, ImageError, Layers};
use guest_mm::pool::{BackingChoice, BackingKind, PoolUsage};
use guest_mm::protocol::{Protocol, Sound};
use guest_mm::{Guest, GuestConfig, ImageRam, Service, Sharing};

use crate::config::{self, Backing, Bytes, Memory};
use crate::snapshot::FileRange;

use super::MachineError;

/// A service, and the images on it.
#[derive(Debug)]
pub struct Commons<P: Protocol = Sound> {
    template: Option<Arc<Image>>,
    /// Where in the template memory of devices is, by its first guest-physical address: in one that is a snapshot.
    placed: BTreeMap<u64, u64>,
    /// The others, by their files.
    images: Mutex<BTreeMap<PathBuf, Arc<Image>>>,
    service: Service<P>,
}

impl<P: Protocol> Commons<P> {
    /// The pool and the template that `config` asks for.
    ///
    /// # Errors
    /// The pool cannot be had, or the template is none.
    pub fn new(config: &Memory) -> Result<Commons<P>, MachineError> {
        Commons::with_pool(config, config.pool.value)
    }

    /// The same with another pool.
    ///
    /// # Errors
    /// As [`Commons::new`].
    pub fn with_pool(config: &Memory, pool: Bytes) -> Result<Commons<P>, MachineError> {
        let service = Commons::service_of(config, pool)?;
        let template = config.template.as_ref();
        let template = template.map(|file| service.open_image(&file.value.path)).transpose()?;
        Ok(Commons { template, placed: BTreeMap::new(), images: Mutex::default(), service })
    }

    /// The same with RAM, and what else guests have pages of their own in, over an image that holds it as `ranges` say: RAM first.
    ///
    /// # Errors
    /// As [`Commons::new`].
    pub(super) fn over(
        config: &Memory,
        pool: Bytes,
        image: Layers,
        ranges: &[FileRange],
    ) -> Result<Commons<P>, MachineError> {
        let service = Commons::service_of(config, pool)?;
        let template = Some(service.open_layers(image)?);
        let placed = ranges.iter().map(|range| (range.start, range.first_page())).collect();
        Ok(Commons { template, placed, images: Mutex::default(), service })
    }

    fn service_of(config: &Memory, pool: Bytes) -> Result<Service<P>, MachineError> {
        let choice = match config.backing.value {
            Backing::Auto => BackingChoice::Auto,
            Backing::Memfd => BackingChoice::Only(BackingKind::Memfd),
            Backing::Tmpfs => BackingChoice::Only(BackingKind::Tmpfs),
            Backing::Hugetlb => BackingChoice::Only(BackingKind::Hugetlb),
        };
        Ok(Service::new(choice, pool.get(), pages(config))?)
    }

    /// The image of the device memory at `start`, and its first page, where the template has it.
    pub(super) fn placed(&self, start: u64) -> Option<(Arc<Image>, u64)> {
        Some((Arc::clone(self.template.as_ref()?), *self.placed.get(&start)?))
    }

    /// The image in the file at `path`, which stays: its pages are in the pool once, for all machines.
    ///
    /// # Errors
    /// The file is none.
    pub(super) fn image(&self, path: &Path) -> Result<Arc<Image>, ImageError> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = images.get(path) {
            return Ok(Arc::clone(image));
        }
        let image = self.service.open_image(path)?;
        images.insert(path.to_owned(), Arc::clone(&image));
        Ok(image)
    }

    /// The template.
    pub fn template(&self) -> Option<&Arc<Image>> {
        self.template.as_ref()
    }

    /// The service.
    pub(super) fn service(&self) -> &Service<P> {
        &self.service
    }

    /// What the pool lies on, and why.
    pub fn describe_pool(&self) -> String {
        self.service.describe_pool()
    }

    /// How much of the pool is what.
    pub fn usage(&self) -> PoolUsage {
        self.service.usage()
    }

    /// Adds a guest whose RAM is what `guest.ram` says: over the template from its first page on, range behind range,
    /// where there is one. What it has over other images stays as it is.
    pub(super) fn add_guest(&self, guest: GuestConfig) -> Result<Guest<P>, MachineError> {
        let Some(image) = &self.template else { return Ok(self.service.add_guest(guest)?) };
        let mut first = 0;
        let over = guest.ram.iter().map(|&range| {
            let ram =
                ImageRam { range, image: Arc::clone(image), first, sharing: Sharing::Private };
            first += range.frames();
            ram
        });
        let over = over.chain(guest.over.iter().cloned()).collect();
        Ok(self.service.add_guest(GuestConfig { ram: Vec::new(), over, ..guest })?)
    }

    /// Checks the books of the pool, with the images and without. No machine is left.
    ///
    /// # Errors
    /// The first wrong book.
    pub fn close(self) -> Result<(), AuditError> {
        self.service.audit()?;
        drop((self.template, self.images));
        self.service.audit()
    }
}

/// What one fault fills.
pub(super) fn pages(config: &Memory) -> PageSize {
    match config.pages.value {
        config::PageSize::Size4K => PageSize::Size4K,
        config::PageSize::Size2M => PageSize::Size2M,
        config::PageSize::Size1G => PageSize::Size1G,
    }
}
