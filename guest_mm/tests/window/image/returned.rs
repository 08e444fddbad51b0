//! Memory over an image that the guest gives back.

use guest_mm::addr::PageSize;
use guest_mm::collapse::{CollapsePolicy, Skip};
use guest_mm::unmap::GiveBackError;
use tests::require_userfaultfd;

use super::{MIB, PAGE, POLICIES, Template, add_over, add_shared, end, open, range, word};

#[test]
fn over_an_image_what_is_given_back_reads_zero_and_taken_back_untouched_it_reads_the_image() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        test.expect_image(0, 4 * MIB);
        [0, PAGE].into_iter().for_each(|at| test.store(at, 7));
        let before = mm.usage().host_bytes;
        let given = test.guest.give_back(range(0, 2 * MIB)).unwrap();
        assert_eq!((given.pages, given.returned_bytes), (512, 2 * PAGE), "the image's pages stay");
        assert_eq!(before - mm.usage().host_bytes, 2 * PAGE);
        assert_eq!([test.load(0), test.load(4 * PAGE)], [0, 0]);
        test.store(5 * PAGE, 3);
        assert_eq!([test.load(5 * PAGE), test.load(5 * PAGE + 8)], [3, 0]);
        // Zeroes are not the image's, so its block cannot come back over them.
        let report = test.guest.collapse(range(0, 2 * MIB), CollapsePolicy::default()).unwrap();
        let why = report.skipped[0].why;
        assert!(matches!(why, Skip::Returned { gfn } if gfn.as_u64() == 1), "{why}");
        assert_eq!(test.guest.take_back(range(0, 2 * MIB)).unwrap(), 509);
        assert_eq!([test.load(PAGE), test.load(6 * PAGE)], [word(PAGE), word(6 * PAGE)]);
        assert_eq!([test.load(0), test.load(4 * PAGE), test.load(5 * PAGE)], [0, 0, 3]);
        test.expect_image(2 * MIB, 2 * MIB);
        end(&mm, [test], image);
    }
}

#[test]
fn what_shows_an_image_for_good_cannot_be_given_back() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(2 * MIB);
    let (mm, image) = open(8 * MIB, &template);
    let test = add_shared(&mm, &image, PageSize::Size4K);
    let all = range(0, 2 * MIB);
    assert_eq!(test.guest.give_back(all), Err(GiveBackError::SharedImage(all)));
    test.expect_image(0, 2 * MIB);
    end(&mm, [test], image);
}
