//! `[pmem.NAME]`
//!
//! The memory is RAM of the service over an image of the file: the file is read page by page as the guest comes to it, once for
//! all guests of this process, and never written. Private memory gets a page of the guest's own with the first store to it; those
//! pages go with the guest. A store to shared memory stops the guest, and the report names the address: virtio 1.2 has no way
//! to tell a driver that the memory is read-only.

use std::io;

use devices::virtio::pmem::Pmem;
use devices::virtio::pmem::host::Ephemeral;
use devices::virtio::pmem::wire::Region;
use guest_mm::ImageRam;
use guest_mm::addr::{GfnRange, Gpa};

use crate::config::{self, MachineConfig, Sharing};
use crate::machine::MachineError;
use crate::machine::commons::Commons;

use super::Boxed;

/// The device that tells the guest of the memory.
pub(super) fn model(pmem: &config::Pmem) -> Boxed {
    let region = Region { start: pmem.range.start, size: pmem.range.length.get() };
    Box::new(Pmem::new(region, Box::new(Ephemeral)))
}

/// The memory itself, of all devices of `config`.
///
/// # Errors
/// A file is no image: the key is named.
pub(in crate::machine) fn images(
    config: &MachineConfig,
    commons: &Commons,
) -> Result<Vec<ImageRam>, MachineError> {
    let image = |(name, pmem): (&str, &config::Pmem)| {
        let path = &*pmem.file.value.path;
        let (image, first) = match commons.placed(pmem.range.start) {
            Some(placed) => placed,
            None => {
                let image = commons.image(path).map_err(|error| MachineError::Device {
                    key: format!("pmem.{name}.file"),
                    path: path.to_owned(),
                    source: io::Error::other(error),
                })?;
                (image, 0)
            }
        };
        Ok(ImageRam {
            range: GfnRange::from_bytes(Gpa::new(pmem.range.start), pmem.range.length.get())?,
            image,
            first,
            sharing: match pmem.sharing.value {
                Sharing::Private => guest_mm::Sharing::Private,
                Sharing::Shared => guest_mm::Sharing::Shared,
            },
        })
    };
    config.pmem().map(image).collect()
}
