//! What machines on one memory service have in common: a pool, and the template that their RAM lies over.

use std::sync::Arc;

use guest_mm::addr::PageSize;
use guest_mm::audit::AuditError;
use guest_mm::image::Image;
use guest_mm::pool::{BackingChoice, BackingKind, PoolUsage};
use guest_mm::protocol::{Protocol, Sound};
use guest_mm::{Guest, GuestConfig, ImageRam, Service, Sharing};

use crate::config::{self, Backing, Bytes, Memory};

use super::MachineError;

/// A service, and the template on it if there is one.
#[derive(Debug)]
pub struct Commons<P: Protocol = Sound> {
    template: Option<Arc<Image>>,
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
        let choice = match config.backing.value {
            Backing::Auto => BackingChoice::Auto,
            Backing::Memfd => BackingChoice::Only(BackingKind::Memfd),
            Backing::Tmpfs => BackingChoice::Only(BackingKind::Tmpfs),
            Backing::Hugetlb => BackingChoice::Only(BackingKind::Hugetlb),
        };
        let service = Service::new(choice, pool.get(), pages(config))?;
        let template = config.template.as_ref();
        let template = template.map(|file| service.open_image(&file.value.path)).transpose()?;
        Ok(Commons { template, service })
    }

    /// The template.
    pub fn template(&self) -> Option<&Image> {
        self.template.as_deref()
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
    /// where there is one.
    pub(super) fn add_guest(&self, guest: GuestConfig) -> Result<Guest<P>, MachineError> {
        let Some(image) = &self.template else { return Ok(self.service.add_guest(guest)?) };
        let mut first = 0;
        let over = guest.ram.iter().map(|&range| {
            let ram =
                ImageRam { range, image: Arc::clone(image), first, sharing: Sharing::Private };
            first += range.frames();
            ram
        });
        let over = over.collect();
        Ok(self.service.add_guest(GuestConfig { ram: Vec::new(), over, ..guest })?)
    }

    /// Checks the books of the pool, with the template and without. No machine is left.
    ///
    /// # Errors
    /// The first wrong book.
    pub fn close(self) -> Result<(), AuditError> {
        self.service.audit()?;
        drop(self.template);
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
