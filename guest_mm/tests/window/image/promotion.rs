//! Small leaves over an image become the image's own huge one.

use guest_mm::addr::PageSize;
use guest_mm::collapse::{CollapsePolicy, Copying, Skip};
use guest_mm::entry::Marker;
use guest_mm::prot::Access;
use tests::require_userfaultfd;

use super::super::collapse::bytes;
use super::*;

/// A guest whose pages of the first two blocks were read one by one.
fn read_in_small_pages(mm: &GuestMm, image: &Arc<Image>) -> TestGuest {
    let test = add_over(mm, image, PageSize::Size4K);
    for block in [0, 2 * MIB] {
        // A page table first, or a block that is loaded whole would be mapped whole.
        test.guest.mark(range(block, PAGE), Marker::Guard).unwrap();
        test.expect_image(block + PAGE, 2 * MIB - PAGE);
        test.guest.unmap(range(block, PAGE)).unwrap();
        test.expect_image(block, PAGE);
    }
    assert_eq!(test.image_leaves(), [1024, 0]);
    test
}

#[test]
fn pages_of_an_image_become_its_block_and_no_byte_is_copied() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = read_in_small_pages(&mm, &image);
    let tables = test.guest.stats().resident.tables[0];
    let policy = CollapsePolicy { copying: Copying::Never, max_holes: 0 };
    let report = test.guest.collapse(range(0, 2 * MIB), policy).unwrap();
    assert_eq!((report.promoted, report.copied, report.skipped.len()), (1, 0, 0));
    assert_eq!(test.image_leaves(), [512, 1]);
    assert_eq!(test.guest.stats().resident.tables[0], tables - 1);
    test.expect_image(0, 4 * MIB);
    // It still copies its page for a store.
    test.store(7 * PAGE, 7);
    assert_eq!((test.load(7 * PAGE), test.image_leaves()), (7, [1023, 0]));
    test.expect_image(8 * PAGE, PAGE);
    let report = test.guest.collapse(range(0, 4 * MIB), CollapsePolicy::default()).unwrap();
    assert_eq!(report.promoted, 1, "the other block");
    assert_eq!(report.skipped.len(), 1, "a page of it is the guest's own");
    assert!(matches!(report.skipped[0].why, Skip::Shared { .. } | Skip::MixedRights { .. }));
    assert_eq!((test.load(7 * PAGE), test.image_leaves()), (7, [511, 1]));
    // The private page goes, and the block can be the image's again.
    test.guest.unmap(range(7 * PAGE, PAGE)).unwrap();
    let report = test.guest.collapse(range(0, 2 * MIB), CollapsePolicy::default()).unwrap();
    assert_eq!(report.promoted, 1, "absent pages are the image's as well");
    test.expect_image(0, 4 * MIB);
    end(&mm, [test], image);
}

#[test]
fn a_block_of_copies_becomes_a_block_of_the_guests_own() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size4K);
    (0..2 * MIB).step_by(PAGE as usize).for_each(|at| test.store(at, at));
    let report = test.guest.collapse(range(0, 2 * MIB), CollapsePolicy::default()).unwrap();
    assert_eq!((report.promoted, report.skipped.len()), (1, 0));
    assert_eq!(test.guest.stats().resident.leaves, [0, 1, 0]);
    for at in (0..2 * MIB).step_by(PAGE as usize) {
        assert_eq!((test.load(at), test.load(at + 8)), (at, word(at + 8)));
    }
    end(&mm, [test], image);
}

/// A hole in RAM over an image holds the image's page: a collapse that fills holes must not fill it with zeroes.
#[test]
fn holes_in_a_block_over_an_image_are_never_filled_with_zeroes() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for copying in [Copying::Never, Copying::Allowed] {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_over(&mm, &image, PageSize::Size4K);
        // All but one page are the guest's own; that one was never touched.
        (PAGE..2 * MIB).step_by(PAGE as usize).for_each(|at| test.store(at, at));
        let policy = CollapsePolicy { max_holes: 511, copying };
        test.guest.collapse(range(0, 2 * MIB), policy).unwrap();
        test.expect_image(0, PAGE);
        (PAGE..2 * MIB).step_by(PAGE as usize).for_each(|at| assert_eq!(test.load(at), at));
        end(&mm, [test], image);
    }
}

#[test]
fn a_pinned_copy_keeps_its_block_from_going_back_to_the_image() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = read_in_small_pages(&mm, &image);
    let pinned = test.guest.pin(bytes(PAGE, 8), Access::Read).unwrap();
    let report = test.guest.collapse(range(0, 4 * MIB), CollapsePolicy::default()).unwrap();
    assert_eq!((report.promoted, report.skipped.len()), (1, 1));
    test.expect_image(0, 4 * MIB);
    drop(pinned);
    end(&mm, [test], image);
}

/// Guests read, store, and are given back to the image, all at once.
#[test]
fn stores_meet_retractions_and_nothing_is_lost() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(2 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = read_all(&mm, &image);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                test.guest.collapse(range(0, 2 * MIB), CollapsePolicy::default()).unwrap();
            }
        });
        for round in 0..200u64 {
            let page = round * 37 % 512;
            test.expect_image(page * PAGE, PAGE);
            test.store(page * PAGE + 8, round);
            assert_eq!(
                (test.load(page * PAGE + 8), test.load(page * PAGE)),
                (round, word(page * PAGE))
            );
            test.guest.unmap(range(page * PAGE, PAGE)).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    test.expect_image(0, 2 * MIB);
    end(&mm, [test], image);
}

fn read_all(mm: &GuestMm, image: &Arc<Image>) -> TestGuest {
    let test = add_over(mm, image, PageSize::Size4K);
    test.expect_image(0, 2 * MIB);
    test
}
