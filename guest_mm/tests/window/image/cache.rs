//! What is expected to be needed is read from the disk before its turn.

use std::os::fd::AsFd;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use guest_mm::image::Needed;
use rustix::fs::{Advice, fadvise};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tests::require_userfaultfd;

use super::*;

const BLOCKS: u64 = 24;
/// The page of each block that is needed.
const NEEDED: u64 = 7;

impl Template {
    /// Has the host forget it; false where it lies in memory alone.
    fn cool(&self) -> bool {
        let file = self.file();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        !self.is_cached(NEEDED)
    }

    /// Whether `page` of it is in the page cache. To read it with `RWF_NOWAIT` would bring it there.
    fn is_cached(&self, page: u64) -> bool {
        let (file, bytes) = (self.file(), PAGE as usize);
        let mut resident = 0_u8;
        // SAFETY: a new mapping of one page, which nothing touches; the kernel writes one byte.
        unsafe {
            let flags = MapFlags::SHARED;
            let at = mmap(null_mut(), bytes, ProtFlags::READ, flags, file.as_fd(), page * PAGE);
            let at = at.unwrap();
            assert_eq!(libc::mincore(at, bytes, &raw mut resident), 0);
            munmap(at, bytes).unwrap();
        }
        resident & 1 != 0
    }
}

#[test]
fn blocks_are_read_from_the_disk_before_their_turn() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(BLOCKS * 2 * MIB);
    if !template.cool() {
        tests::skip(&format!("{} lies in memory alone", template.path.display()));
        return;
    }
    let (mm, image) = open(BLOCKS * 4 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size4K);
    let page = |block: u64| block * 512 + NEEDED;
    let needed = |block| Needed { page: page(block) as u32, stored: true };
    test.guest.expect(&image, &(0..BLOCKS).map(needed).collect::<Vec<_>>());
    assert!(test.guest.make_next_ready());
    assert!(template.is_cached(page(0)));
    assert!((1..BLOCKS).all(|block| !template.is_cached(page(block))), "the guest begins");
    assert!(test.guest.make_next_ready());
    let begun = Instant::now();
    while !(1..=17).all(|block| template.is_cached(page(block))) {
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody reads ahead");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!((18..BLOCKS).all(|block| !template.is_cached(page(block))), "their turn is far away");
    end(&mm, [test], image);
}
