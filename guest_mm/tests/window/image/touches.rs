//! What a guest finds in memory over an image, and what becomes of its stores.

use std::os::unix::fs::MetadataExt;

use guest_mm::GuestConfig;
use guest_mm::addr::{Gpa, PageSize};
use guest_mm::fault::FaultError;
use guest_mm::prot::Prot;
use tests::require_userfaultfd;

use super::*;

#[test]
fn reads_find_the_files_bytes_and_a_store_copies_its_page_alone() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let [one, other] = [(); 2].map(|()| add_over(&mm, &image, pages));
        one.expect_image(0, 4 * MIB);
        assert_eq!(one.own_pages(), 0);
        assert_eq!(image.nr_loaded(), 1024);
        let at = 2 * MIB + 7 * PAGE;
        one.store(at + 8, 5);
        assert_eq!(
            (one.load(at + 8), one.load(at), one.load(at + 16)),
            (5, word(at), word(at + 16))
        );
        one.expect_image(at - PAGE, PAGE);
        one.expect_image(at + PAGE, PAGE);
        assert_eq!(one.own_pages(), 1);
        // A page that was never read.
        other.store(3 * PAGE + 8, 6);
        assert_eq!((other.load(3 * PAGE + 8), other.load(3 * PAGE)), (6, word(3 * PAGE)));
        other.expect_image(at, PAGE);
        one.expect_image(3 * PAGE, PAGE);
        assert_eq!(image.nr_loaded(), 1024, "nothing is loaded twice");
        end(&mm, [one, other], image);
    }
}

#[test]
fn nothing_is_loaded_that_is_not_touched() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(8 * MIB);
    for (pages, loaded) in [(PageSize::Size4K, 1), (PageSize::Size2M, 512)] {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        assert_eq!(image.nr_loaded(), 0);
        test.expect_image(5 * MIB, PAGE);
        assert_eq!(image.nr_loaded(), loaded, "{pages}");
        end(&mm, [test], image);
    }
}

#[test]
fn one_leaf_shows_a_whole_block_and_a_store_splits_it() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size2M);
    test.expect_image(0, 2 * MIB);
    assert_eq!(test.image_leaves(), [0, 1]);
    test.store(PAGE, 1);
    assert_eq!(test.image_leaves(), [511, 0]);
    assert_eq!(test.load(PAGE), 1);
    test.expect_image(2 * PAGE, 2 * MIB - 2 * PAGE);
    // Another guest maps it whole still, and by small faults too, since all of it is there.
    let other = add_over(&mm, &image, PageSize::Size4K);
    other.expect_image(0, 2 * MIB);
    assert_eq!(other.image_leaves(), [0, 1]);
    end(&mm, [test, other], image);
}

/// Copies lie in place in a block of the guest's own, so neighbours are one mapping.
#[test]
fn copies_of_neighbours_lie_in_order() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size2M);
    test.expect_image(0, 4 * MIB);
    let before = test.mappings(4 * MIB);
    (0..4 * MIB).step_by(PAGE as usize).for_each(|at| test.store(at, at));
    // Two blocks, each one mapping where it had one.
    let after = test.mappings(4 * MIB);
    assert!(after <= before + 4, "{before} mappings became {after}");
    assert_eq!((test.own_pages(), test.guest.stats().scattered), (1024, 0));
    for at in (0..4 * MIB).step_by(PAGE as usize) {
        assert_eq!((test.load(at), test.load(at + 8)), (at, word(at + 8)));
    }
    end(&mm, [test], image);
}

#[test]
fn memory_that_is_taken_away_reads_the_image_again() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        test.store(5 * PAGE, 1);
        test.store(6 * PAGE, 2);
        assert_eq!(test.guest.unmap(range(5 * PAGE, PAGE)).unwrap(), 1);
        test.expect_image(5 * PAGE, PAGE);
        assert_eq!(test.load(6 * PAGE), 2);
        test.guest.unmap(range(0, 4 * MIB)).unwrap();
        assert_eq!(test.guest.stats().resident.frames(), 0);
        test.expect_image(0, 4 * MIB);
        end(&mm, [test], image);
    }
}

/// Guests once had the host make blocks of zeroes ahead of their reads, where the image's blocks were to come: fifty
/// clones took 1.3 GiB of the host's memory, in frames that the pool had for free.
#[test]
fn the_host_has_no_memory_for_what_is_only_read() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(16 * MIB);
    let (mm, image) = open(128 * MIB, &template);
    let guests: Vec<_> = (0..6).map(|i| add_over(&mm, &image, POLICIES[i % 2])).collect();
    guests.iter().for_each(|test| test.expect_image(0, 16 * MIB));
    assert_eq!(host_bytes(&guests[0]), 16 * MIB);
    guests[0].store(0, 1);
    assert_eq!(host_bytes(&guests[0]), 16 * MIB + PAGE);
    end(&mm, guests, image);
}

/// What the file behind a guest's window takes of the host's memory.
fn host_bytes(test: &TestGuest) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let start = format!("{:x}-", test.base.as_u64());
    let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
    let inode: u64 = line.split_whitespace().nth(4).unwrap().parse().unwrap();
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| std::fs::metadata(fd.unwrap().path()).ok())
        .find(|file| file.ino() == inode)
        .map(|file| file.blocks() * 512)
        .expect("the pool's file is open")
}

/// The image's last block and the region's are short, and the region ends before the image does.
#[test]
fn an_image_may_end_in_the_middle_of_a_block() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(3 * MIB + 5 * PAGE);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        test.expect_image(0, 3 * MIB + 5 * PAGE);
        test.store(3 * MIB + 4 * PAGE, 3);
        assert_eq!(test.load(3 * MIB + 4 * PAGE), 3);
        let part = over(&image, range(8 * MIB, 2 * MIB + PAGE));
        let part = add_as(&mm, GuestConfig { over: vec![part], ..nothing(pages) });
        // Its window starts where its RAM does.
        assert_eq!((part.load(0), part.load(2 * MIB)), (word(0), word(2 * MIB)));
        part.store(2 * MIB, 4);
        end(&mm, [test, part], image);
    }
}

/// Plain RAM, and two ranges over different parts of one image.
#[test]
fn ranges_of_one_guest_may_lie_over_different_things() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(32 * MIB, &template);
    let second = ImageRam { first: 512, ..over(&image, range(2 * MIB, 2 * MIB)) };
    let again = ImageRam { first: 512, ..over(&image, range(4 * MIB, MIB)) };
    let config = GuestConfig {
        ram: vec![range(0, 2 * MIB)],
        over: vec![second, again],
        ..nothing(PageSize::Size4K)
    };
    let test = add_as(&mm, config);
    let mut found = test.guest.windows().map(|(range, window)| {
        // SAFETY: as in `TestGuest::load`.
        (range.start().gpa().as_u64(), unsafe { (window.as_u64() as *const u64).read_volatile() })
    });
    assert_eq!(found.next(), Some((0, 0)));
    assert_eq!(found.next(), Some((2 * MIB, word(2 * MIB))));
    assert_eq!(found.next(), Some((4 * MIB, word(2 * MIB))));
    drop(found);
    end(&mm, [test], image);
}

#[test]
fn what_the_monitor_writes_is_the_guests_own() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let [test, other] = [(); 2].map(|()| add_over(&mm, &image, pages));
        test.guest.populate(range(0, 4 * MIB)).unwrap();
        let mut bytes = [0; 16];
        test.guest.read(Gpa::new(2 * MIB - 8), &mut bytes).unwrap();
        assert_eq!(bytes[..8], word(2 * MIB - 8).to_le_bytes());
        assert_eq!(bytes[8..], word(2 * MIB).to_le_bytes());
        // Over the end of a page and of a block.
        test.guest.write(Gpa::new(2 * MIB - 8), &[7; 16]).unwrap();
        assert_eq!([test.load(2 * MIB - 8), test.load(2 * MIB)], [0x0707_0707_0707_0707; 2]);
        assert_eq!(
            (test.load(2 * MIB - 16), test.load(2 * MIB + 8)),
            (word(2 * MIB - 16), word(2 * MIB + 8))
        );
        assert_eq!(test.own_pages(), 2);
        other.expect_image(2 * MIB - PAGE, 2 * PAGE);
        end(&mm, [test, other], image);
    }
}

/// Rights of RAM over a private image: a store still goes to a copy, never to the image.
#[test]
fn rights_to_write_are_rights_to_copy_where_the_page_is_the_images() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(2 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let [test, other] = [(); 2].map(|()| add_over(&mm, &image, pages));
        test.expect_image(0, 2 * MIB);
        test.store(0, 1);
        test.guest.protect(range(0, 2 * MIB), Prot::R).unwrap();
        test.guest.protect(range(0, 2 * MIB), Prot::Rw).unwrap();
        test.guest.audit().unwrap();
        test.store(PAGE, 2);
        test.store(8, 3);
        assert_eq!([test.load(0), test.load(8), test.load(PAGE)], [1, 3, 2]);
        other.expect_image(0, 2 * MIB);
        // Without the right, there is no copy either.
        test.guest.protect(range(2 * PAGE, PAGE), Prot::R).unwrap();
        test.expect_image(2 * PAGE, PAGE);
        let store = test.store_aside(2 * PAGE);
        assert_eq!(test.stop(), FaultError::ReadOnly { gpa: Gpa::new(2 * PAGE) });
        store.join().unwrap();
        end(&mm, [test, other], image);
    }
}

#[test]
fn a_shared_image_is_never_written_by_anyone() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_shared(&mm, &image, pages);
        test.expect_image(0, 2 * MIB);
        test.guest.populate(range(0, 4 * MIB)).unwrap();
        let error = test.guest.write(Gpa::new(8), &[1; 8]).unwrap_err();
        assert_eq!(error.to_string(), "write to the read-only page at guest-physical 0x8");
        test.guest.unmerge(range(0, 4 * MIB)).unwrap();
        test.guest.protect(range(0, 4 * MIB), Prot::R).unwrap();
        for prot in [Prot::Rw, Prot::Rwx, Prot::Rc, Prot::Rxc] {
            let error = test.guest.protect(range(MIB, MIB), prot).unwrap_err();
            assert_eq!(
                error.to_string(),
                "guest-physical 0x100000 shows a shared image, which nobody can be given the right to write to"
            );
        }
        test.expect_image(0, 4 * MIB);
        assert_eq!(test.own_pages(), 0);
        for at in [2 * PAGE, 2 * MIB + PAGE] {
            let store = test.store_aside(at);
            assert_eq!(test.stop(), FaultError::ReadOnly { gpa: Gpa::new(at) });
            store.join().unwrap();
        }
        test.guest.audit().unwrap();
        end(&mm, [test], image);
    }
}

#[test]
fn many_guests_over_one_image_keep_their_own_stores() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(8 * MIB);
    let (mm, image) = open(128 * MIB, &template);
    let guests: Vec<_> = (0..24).map(|i| add_over(&mm, &image, POLICIES[i % 2])).collect();
    std::thread::scope(|scope| {
        for (i, test) in guests.iter().enumerate() {
            scope.spawn(move || {
                for at in (0..8 * MIB).step_by(PAGE as usize) {
                    assert_eq!(test.load(at), word(at));
                    if at / PAGE % 24 == i as u64 {
                        test.store(at, i as u64);
                    }
                }
            });
        }
    });
    for (i, test) in guests.iter().enumerate() {
        for at in (0..8 * MIB).step_by(PAGE as usize) {
            let own = at / PAGE % 24 == i as u64;
            assert_eq!(test.load(at), if own { i as u64 } else { word(at) });
            assert_eq!(test.load(at + 8), word(at + 8));
        }
    }
    assert_eq!(image.nr_loaded(), 2048, "every page is loaded once");
    end(&mm, guests, image);
}

/// Image and copies need more than there is: the guest is stopped by name, and goes on finding what it had.
#[test]
fn a_pool_that_is_too_small_stops_the_guest_and_loses_nothing() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        // Room for the image and half of the copies.
        let (mm, image) = open(6 * MIB, &template);
        let test = Arc::new(add_over(&mm, &image, pages));
        test.expect_image(0, 4 * MIB);
        (0..512).for_each(|page| test.store(page * PAGE, page));
        let store = test.store_aside(2 * MIB);
        let stop = test.stop();
        assert_eq!(
            stop.to_string(),
            "write of guest-physical 0x200000: the pool of 6 MiB is exhausted"
        );
        store.join().unwrap();
        test.expect_image(2 * MIB + PAGE, 2 * MIB - PAGE);
        (0..512).for_each(|page| assert_eq!(test.load(page * PAGE), page));
        end(&mm, [Arc::into_inner(test).unwrap()], image);

        // Not even room for the image.
        let (mm, image) = open(2 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        test.expect_image(0, 2 * MIB);
        let store = test.store_aside(3 * MIB);
        assert!(
            matches!(test.stop(), FaultError::Exhausted { gpa, .. } if gpa.as_u64() == 3 * MIB)
        );
        store.join().unwrap();
        test.expect_image(0, 2 * MIB);
        end(&mm, [test], image);
    }
}

/// The pages of one table got their rights back, some to be written and some to be copied, and the window was told the lesser
/// right for all: a store to a page of the guest's own faulted for ever.
#[test]
fn rights_come_back_to_pages_of_both_kinds() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        test.store(0, 1);
        test.expect_image(PAGE, PAGE);
        test.guest.protect(range(0, 2 * MIB), Prot::R).unwrap();
        assert_eq!(test.load(0), 1);
        test.guest.protect(range(0, 2 * MIB), Prot::Rwx).unwrap();
        test.store_aside(0).join().unwrap();
        test.store_aside(PAGE).join().unwrap();
        assert_eq!([test.load(0), test.load(PAGE), test.load(PAGE + 8)], [1, 1, word(PAGE + 8)]);
        end(&mm, [test], image);
    }
}
