//! Pages over an image that come from elsewhere: placed, and waited for.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use guest_mm::addr::{Gpa, PageSize};
use guest_mm::entry::Marker;
use guest_mm::fault::FaultError;
use guest_mm::pin::{Patience, PinError};
use guest_mm::place::{Arrived, Arriving, Content, Onto, PlaceError, Placed};
use guest_mm::prot::Access;
use tests::require_userfaultfd;
use vm_memory::Bytes;

use super::super::collapse::bytes;
use super::super::service;
use super::*;

#[test]
fn what_is_placed_over_an_image_takes_its_place() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        let place = |at: u64, content| test.guest.place(Gpa::new(at), content).unwrap();
        let page = [7; PAGE as usize];
        assert_eq!(place(PAGE, Content::Bytes(&page)), Placed::Here);
        assert_eq!(place(2 * PAGE, Content::Zero), Placed::Here);
        let mut parcel = mm.parcel().unwrap();
        parcel.write(8, &9u64.to_le_bytes());
        assert_eq!(place(3 * PAGE, Content::Frame(parcel)), Placed::Here);
        assert_eq!(test.load(PAGE), 0x0707_0707_0707_0707);
        assert_eq!(test.load(2 * PAGE), 0);
        assert_eq!([test.load(3 * PAGE), test.load(3 * PAGE + 8)], [0, 9]);
        test.expect_image(0, PAGE);
        // What is there stays, the image's too.
        assert_eq!(place(0, Content::Zero), Placed::AlreadyThere);
        assert_eq!(place(PAGE, Content::Zero), Placed::AlreadyThere);
        let parcel = mm.parcel().unwrap();
        assert_eq!(place(2 * PAGE, Content::Frame(parcel)), Placed::AlreadyThere);
        test.expect_image(0, PAGE);
        assert_eq!(test.load(PAGE), 0x0707_0707_0707_0707);
        end(&mm, [test], image);
    }
}

#[test]
fn a_block_whose_every_page_was_placed_is_huge() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size4K);
    for page in 0..512u64 {
        let bytes = [page as u8; PAGE as usize];
        let placed = test.guest.place(Gpa::new(page * PAGE), Content::Bytes(&bytes)).unwrap();
        assert_eq!(placed, if page == 511 { Placed::Completed } else { Placed::Here });
    }
    (0..512).for_each(|page| assert_eq!(test.load(page * PAGE) as u8, page as u8));
    assert_eq!(test.guest.stats().resident.leaves, [0, 1, 0]);
    end(&mm, [test], image);
}

#[test]
fn what_may_not_be_placed_is_refused_and_the_frame_comes_back() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(2 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = add_shared(&mm, &image, PageSize::Size4K);
    let refused = |at, content| test.guest.place(Gpa::new(at), content).unwrap_err();
    let gpa = Gpa::new(PAGE);
    let read_only = PlaceError::Fault(FaultError::ReadOnly { gpa });
    assert_eq!(refused(PAGE, Content::Frame(mm.parcel().unwrap())), read_only);
    let elsewhere = service(4 * MIB, PageSize::Size4K);
    let own = add_over(&mm, &image, PageSize::Size4K);
    let parcel = elsewhere.parcel().unwrap();
    let error = own.guest.place(gpa, Content::Frame(parcel)).unwrap_err();
    assert_eq!(error, PlaceError::OtherService { gpa });
    own.guest.mark(range(0, PAGE), Marker::Guard).unwrap();
    let error = own.guest.place(Gpa::new(0), Content::Zero).unwrap_err();
    assert!(matches!(error, PlaceError::Fault(FaultError::Marked { .. })));
    own.expect_image(PAGE, PAGE);
    end(&mm, [test, own], image);
    elsewhere.audit().unwrap();
    assert_eq!(elsewhere.usage().free, elsewhere.usage().frames);
}

/// A guest whose second block is elsewhere, and the addresses that are asked for.
fn with_missing(
    mm: &GuestMm,
    image: &Arc<Image>,
    pages: PageSize,
) -> (TestGuest, std::sync::mpsc::Receiver<u64>) {
    let (ask, asked) = channel();
    let ask = std::sync::Mutex::new(ask);
    let config = GuestConfig {
        over: vec![over(image, range(0, 4 * MIB))],
        on_missing: Some(Box::new(move |gpa| {
            ask.lock().unwrap().send(gpa.as_u64()).unwrap();
            guest_mm::Answer::Asked
        })),
        ..nothing(pages)
    };
    let test = add_as(mm, config);
    test.guest.mark(range(2 * MIB, 2 * MIB), Marker::Missing).unwrap();
    (test, asked)
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn who_reads_a_missing_page_waits_until_it_is_placed() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let (test, asked) = with_missing(&mm, &image, pages);
        test.expect_image(0, 2 * MIB);
        let at = 2 * MIB + 5 * PAGE;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| test.load(at + 8));
            let writer = scope.spawn(|| test.store(at + PAGE, 1));
            let mut gpas = [asked.recv_timeout(SOON).unwrap(), asked.recv_timeout(SOON).unwrap()];
            gpas.sort_unstable();
            assert_eq!(gpas.map(|gpa| gpa / PAGE * PAGE), [at, at + PAGE]);
            std::thread::sleep(Duration::from_millis(20));
            assert!(!reader.is_finished() && !writer.is_finished(), "nothing has come yet");
            let page = [3; PAGE as usize];
            for at in [at, at + PAGE] {
                let placed = test.guest.place(Gpa::new(at), Content::Bytes(&page)).unwrap();
                assert_eq!(placed, Placed::Here);
            }
            assert_eq!(reader.join().unwrap(), 0x0303_0303_0303_0303);
            writer.join().unwrap();
        });
        assert_eq!([test.load(at + PAGE), test.load(at + PAGE + 8)], [1, 0x0303_0303_0303_0303]);
        assert_eq!(test.guest.stats().resident.markers[0], 510);
        test.expect_image(0, 2 * MIB);
        end(&mm, [test], image);
    }
}

#[test]
fn a_pin_of_a_missing_page_waits_as_long_as_its_patience_lasts() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let (test, asked) = with_missing(&mm, &image, PageSize::Size4K);
    let at = 2 * MIB + 5 * PAGE;
    let start = Instant::now();
    let patience = Patience::for_at_most(Duration::from_millis(30));
    let error = test.guest.pin_within(bytes(at, 8), Access::Write, &patience).unwrap_err();
    assert_eq!(error, PinError::TimedOut { gpa: Gpa::new(at) });
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert_eq!(asked.recv_timeout(SOON), Ok(at));
    std::thread::scope(|scope| {
        let pinner = scope.spawn(|| {
            let pinned = test.guest.pin(bytes(at, 8), Access::Write).unwrap();
            pinned.slices().next().unwrap().read_obj::<u64>(0).unwrap()
        });
        std::thread::sleep(Duration::from_millis(10));
        test.guest.place(Gpa::new(at), Content::Bytes(&[4; PAGE as usize])).unwrap();
        assert_eq!(pinner.join().unwrap(), 0x0404_0404_0404_0404);
    });
    end(&mm, [test], image);
}

/// Without anyone to ask, the guest is stopped by name.
#[test]
fn a_missing_page_that_nobody_is_asked_for_stops_the_guest() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(2 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size4K);
    test.guest.mark(range(PAGE, PAGE), Marker::Missing).unwrap();
    let store = test.store_aside(PAGE);
    let gpa = Gpa::new(PAGE);
    let (access, marker) = (Access::Write, Marker::Missing);
    assert_eq!(test.stop(), FaultError::Marked { gpa, access, marker });
    store.join().unwrap();
    end(&mm, [test], image);
}

/// A vCPU that waited for a page slept on when the page was given up: nothing woke it, and nothing would ever come.
#[test]
fn who_waits_for_a_page_that_is_given_up_asks_again() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let (test, asked) = with_missing(&mm, &image, PageSize::Size4K);
    let at = 2 * MIB + 5 * PAGE;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| test.load(at));
        assert_eq!(asked.recv_timeout(SOON).map(|gpa| gpa / PAGE * PAGE), Ok(at));
        test.guest.unmap(range(at, PAGE)).unwrap();
        assert_eq!(reader.join().unwrap(), word(at), "what is not missing is the image's");
    });
    end(&mm, [test], image);
}

/// Copies of the image's pages from `gpa` on, as one that has them ready gives them.
fn make_ready(test: &TestGuest, image: &Image, gpa: u64, pages: usize) -> Arrived {
    let mut bytes = vec![0; pages * PAGE as usize];
    image.copy_out(gpa / PAGE, &mut bytes).unwrap();
    let (pages, _) = bytes.as_chunks();
    let pages = pages.iter().map(Arriving::Bytes);
    test.guest.arrive(Gpa::new(gpa).gfn(), Onto::Untouched, pages).unwrap()
}

#[test]
fn pages_that_are_made_ready_are_the_guests_own_and_what_it_has_touched_stays() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        let first = make_ready(&test, &image, 3 * PAGE, 5);
        assert_eq!((first.pages, first.duplicates), (5, 0));
        assert_eq!((test.own_pages(), image.nr_loaded()), (5, 0), "they need no page of the image");
        assert_eq!(test.mappings(2 * MIB), 1, "they lie where the window points");
        let faults = test.guest.stats().messages.messages;
        (3..8).for_each(|page| test.store(page * PAGE, page));
        assert_eq!(test.guest.stats().messages.messages, faults);
        // The page between is the image's, and others have come and gone.
        test.load(9 * PAGE);
        test.guest.give_back(range(10 * PAGE, PAGE)).unwrap();
        make_ready(&test, &image, 3 * PAGE, 10);
        (3..8).for_each(|page| assert_eq!(test.load(page * PAGE), page));
        assert_eq!(test.load(10 * PAGE), 0, "what was given back is zeroes");
        test.expect_image(8 * PAGE, 2 * PAGE);
        test.expect_image(11 * PAGE, MIB);
        end(&mm, [test], image);
    }
}

#[test]
fn a_block_that_is_made_ready_is_huge_unless_the_guest_was_there_first() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(6 * MIB);
    let (mm, image) = open(32 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size4K);
    let whole = |gpa: u64| {
        let mut parcel = test.guest.block_parcel(Gpa::new(gpa).gfn()).unwrap();
        parcel.gather();
        image.copy_out(gpa / PAGE, parcel.bytes()).unwrap();
        test.guest.place_block(parcel, Onto::Untouched).unwrap()
    };
    assert!(whole(0).unwrap().huge);
    test.store(2 * MIB + PAGE, 7);
    assert!(whole(2 * MIB).is_err(), "a page of it is there");
    assert_eq!(make_ready(&test, &image, 2 * MIB, 512).duplicates, 1);
    // One by one, the last of them makes it whole, too.
    assert!(make_ready(&test, &image, 4 * MIB, 512).huge);
    assert_eq!(test.load(2 * MIB + PAGE), 7);
    test.expect_image(0, 2 * MIB + PAGE);
    test.expect_image(2 * MIB + 2 * PAGE, 4 * MIB - 2 * PAGE);
    (0..6 * MIB).step_by(PAGE as usize).for_each(|at| test.store(at, at));
    (0..6 * MIB).step_by(PAGE as usize).for_each(|at| assert_eq!(test.load(at), at));
    end(&mm, [test], image);
}

#[test]
fn nothing_is_made_ready_where_a_guest_has_no_pages_of_its_own() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(2 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let (shown, plain) = (
        add_shared(&mm, &image, PageSize::Size4K),
        super::super::add(&mm, 2 * MIB, PageSize::Size4K),
    );
    let page = [7; PAGE as usize];
    for test in [&shown, &plain] {
        let come = [Arriving::Bytes(&page)].into_iter();
        let error = test.guest.arrive(Gpa::new(0).gfn(), Onto::Untouched, come).unwrap_err();
        assert_eq!(error, PlaceError::Fault(FaultError::ReadOnly { gpa: Gpa::new(0) }));
    }
    end(&mm, [shown, plain], image);
}
