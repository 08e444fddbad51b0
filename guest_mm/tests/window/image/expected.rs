//! What a guest is expected to touch soon is ready when it does.

use guest_mm::addr::Gpa;
use guest_mm::fault::FaultError;
use guest_mm::image::{Layers, LoadError, Needed, ReadError, page_sum};
use guest_mm::place::{Arriving, Onto};
use tests::require_userfaultfd;

use super::*;

const BLOCK: u32 = 512;

fn needed(pages: impl IntoIterator<Item = u32>, stored: bool) -> Vec<Needed> {
    pages.into_iter().map(|page| Needed { page, stored }).collect()
}

/// A block that is stored to, a part of the next, stored to and read, and a read of the last.
fn some() -> Vec<Needed> {
    let block = needed(BLOCK..2 * BLOCK - 9, true);
    let part = [needed(3..40, true), needed([50, 41, 60], true), needed(42..48, false)].concat();
    [block, part, needed([2 * BLOCK + 5], false), needed([u32::MAX], true)].concat()
}

fn make_all_ready(test: &TestGuest) {
    while test.guest.make_next_ready() {}
}

/// The guest stores to what it is expected to store to, and finds the image everywhere else.
fn touch_all(test: &TestGuest) {
    for needed in some().iter().filter(|needed| needed.page < 3 * BLOCK) {
        let at = u64::from(needed.page) * PAGE;
        assert_eq!(test.load(at), word(at));
        if needed.stored {
            test.store(at, at);
        }
    }
}

fn expect_all(test: &TestGuest) {
    let is_stored = |page: u64| some().contains(&Needed { page: page as u32, stored: true });
    for page in 0..u64::from(3 * BLOCK) {
        let at = page * PAGE;
        assert_eq!(test.load(at), if is_stored(page) { at } else { word(at) }, "at {at:#x}");
        assert_eq!(test.load(at + 8), word(at + 8));
    }
}

#[test]
fn what_is_expected_is_ready_before_the_guest_asks() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(6 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(32 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        test.guest.expect(&image, &some());
        make_all_ready(&test);
        if pages == PageSize::Size4K {
            let stats = test.guest.stats();
            assert_eq!(stats.resident.leaves[1], 1, "a block of which nearly all is stored to");
            assert_eq!((test.own_pages(), image.nr_loaded()), (512 + 40, 7));
        }
        touch_all(&test);
        assert_eq!(test.guest.stats().messages.messages, 0);
        expect_all(&test);
        end(&mm, [test], image);
    }
}

#[test]
fn a_touch_of_what_is_expected_makes_its_block_ready() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(6 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(32 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        test.guest.expect(&image, &some());
        touch_all(&test);
        // One for each block, and some of a guest that goes on before the last run of one is there.
        let messages = test.guest.stats().messages.messages;
        assert!(messages < 12, "{messages} violations");
        expect_all(&test);
        make_all_ready(&test);
        expect_all(&test);
        end(&mm, [test], image);
    }
}

/// Pages of its own, the image's, and what was given back stay what they are.
#[test]
fn what_the_guest_had_before_stays() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(6 * MIB);
    let (mm, image) = open(32 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size4K);
    let own = [4 * PAGE, 2 * MIB + 7 * PAGE];
    own.iter().for_each(|&at| test.store(at, 7));
    test.load(5 * PAGE);
    test.guest.give_back(range(2 * MIB + 9 * PAGE, PAGE)).unwrap();
    test.guest
        .arrive(Gpa::new(2 * MIB).gfn(), Onto::Untouched, [Arriving::Zero].into_iter())
        .unwrap();
    test.guest.expect(&image, &some());
    make_all_ready(&test);
    own.iter().for_each(|&at| assert_eq!(test.load(at), 7));
    assert_eq!([2 * MIB, 2 * MIB + 9 * PAGE].map(|at| test.load(at)), [0, 0]);
    test.expect_image(5 * PAGE, PAGE);
    test.expect_image(2 * MIB + 10 * PAGE, MIB);
    end(&mm, [test], image);
}

/// Who makes ready, and who touches, meet in every block.
#[test]
fn pages_are_touched_while_they_are_made_ready() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(6 * MIB);
    for _ in 0..20 {
        let (mm, image) = open(32 * MIB, &template);
        let test = add_over(&mm, &image, PageSize::Size4K);
        test.guest.expect(&image, &some());
        std::thread::scope(|scope| {
            scope.spawn(|| make_all_ready(&test));
            scope.spawn(|| make_all_ready(&test));
            scope.spawn(|| touch_all(&test));
        });
        expect_all(&test);
        end(&mm, [test], image);
    }
}

/// It is told when the guest touches it; what is good is there.
#[test]
fn a_page_that_is_damaged_is_not_made_ready() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let bytes = std::fs::read(&template.path).unwrap();
    let sums: Vec<u64> = bytes.chunks(PAGE as usize).map(page_sum).collect();
    template.overwrite(9 * PAGE + 100, &[0xff]);
    let choice = BackingChoice::Only(BackingKind::Memfd);
    let mm = GuestMm::new(choice, 16 * MIB, PageSize::Size4K).unwrap();
    let files = vec![template.path.clone()];
    let image = mm.open_layers(Layers { files, sums: sums.into(), ..Layers::default() }).unwrap();
    let test = add_over(&mm, &image, PageSize::Size4K);
    test.guest.expect(&image, &needed(0..20, true));
    assert!(!test.guest.make_next_ready());
    test.expect_image(0, 9 * PAGE);
    test.store(10 * PAGE, 1);
    let store = test.store_aside(9 * PAGE);
    let cause = match test.stop() {
        FaultError::Image { cause: LoadError::Read(cause), .. } => cause,
        other => panic!("{other}"),
    };
    assert!(matches!(cause, ReadError::Damaged { page: 9, .. }), "{cause}");
    store.join().unwrap();
    end(&mm, [test], image);
}
