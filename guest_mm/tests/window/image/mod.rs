//! RAM over an image.

mod arrivals;
mod cache;
mod expected;
mod files;
mod layers;
mod oracle;
mod pins;
mod promotion;
mod returned;
mod touches;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use guest_mm::addr::{GfnRange, PageSize};
use guest_mm::image::Image;
use guest_mm::pool::{BackingChoice, BackingKind};
use guest_mm::{GuestConfig, GuestMm, ImageRam, Sharing};
use tests::Scratch;

use super::{MIB, TestGuest, add_as, nothing, range};

const PAGE: u64 = 4096;

/// The policies that a small-page pool serves.
const POLICIES: [PageSize; 2] = [PageSize::Size4K, PageSize::Size2M];

/// The word that belongs at `at` of a template.
fn word(at: u64) -> u64 {
    (at / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A file of [`word`]s, gone with this.
struct Template {
    _folder: Scratch,
    path: PathBuf,
}

impl Template {
    fn new(bytes: u64) -> Template {
        let folder = Scratch::new();
        let words: Vec<u8> = (0..bytes).step_by(8).flat_map(|at| word(at).to_le_bytes()).collect();
        let path = folder.write("template", words);
        Template { _folder: folder, path }
    }

    /// Somebody else's view of it.
    fn file(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }

    fn overwrite(&self, at: u64, bytes: &[u8]) {
        self.file().write_all_at(bytes, at).unwrap();
    }
}

/// RAM over all of an image.
fn over(image: &Arc<Image>, range: GfnRange) -> ImageRam {
    ImageRam { range, image: Arc::clone(image), first: 0, sharing: Sharing::Private }
}

/// A service for small pages, whatever the host would rather have, and an image of `template` on it.
fn open(pool: u64, template: &Template) -> (GuestMm, Arc<Image>) {
    let choice = BackingChoice::Only(BackingKind::Memfd);
    let mm = GuestMm::new(choice, pool, PageSize::Size4K).unwrap();
    let image = mm.open_image(&template.path).unwrap();
    (mm, image)
}

/// A guest whose RAM is all of `image`, private.
fn add_over(mm: &GuestMm, image: &Arc<Image>, pages: PageSize) -> TestGuest {
    let ram = over(image, range(0, image.nr_pages() * PAGE));
    add_as(mm, GuestConfig { over: vec![ram], ..nothing(pages) })
}

/// The same with RAM that only shows it.
fn add_shared(mm: &GuestMm, image: &Arc<Image>, pages: PageSize) -> TestGuest {
    let ram =
        ImageRam { sharing: Sharing::Shared, ..over(image, range(0, image.nr_pages() * PAGE)) };
    add_as(mm, GuestConfig { over: vec![ram], ..nothing(pages) })
}

impl TestGuest {
    /// The guest finds the image's words in the pages of `bytes` from `gpa` on.
    fn expect_image(&self, gpa: u64, bytes: u64) {
        for at in (gpa..gpa + bytes).step_by(PAGE as usize) {
            for at in [at, at + 8, at + PAGE - 8] {
                assert_eq!(self.load(at), word(at), "at {at:#x}");
            }
        }
    }

    /// Pages that are the guest's own.
    fn own_pages(&self) -> u64 {
        let resident = self.guest.stats().resident;
        resident.frames() - resident.image_frames()
    }

    /// Leaves over images, 4 KiB and 2 MiB.
    fn image_leaves(&self) -> [u64; 2] {
        let image = self.guest.stats().resident.image;
        [image[0], image[1]]
    }
}

/// Ends guests and image, the books right after each.
fn end(mm: &GuestMm, guests: impl IntoIterator<Item = TestGuest>, image: Arc<Image>) {
    for guest in guests {
        guest.guest.audit().unwrap();
        mm.audit().unwrap();
        guest.close();
        mm.audit().unwrap();
    }
    drop(image);
    mm.audit().unwrap();
    let usage = mm.usage();
    assert_eq!(usage.free, usage.frames, "all frames are free again");
}
