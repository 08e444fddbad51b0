//! Devices on memory over an image.

use guest_mm::addr::PageSize;
use guest_mm::fault::FaultError;
use guest_mm::pin::PinError;
use guest_mm::prot::Access;
use tests::require_userfaultfd;
use vm_memory::Bytes;

use super::super::collapse::bytes;
use super::*;

/// A device that reads may hold the page for long: the guest's next store must reach it.
#[test]
fn a_pinned_page_is_the_guests_own_so_that_guest_and_device_agree() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let [test, other] = [(); 2].map(|()| add_over(&mm, &image, pages));
        // One page that the guest has read, one that nobody has touched; each for both accesses.
        test.expect_image(0, 4 * PAGE);
        for (access, gpas) in [
            (Access::Read, [PAGE, 2 * MIB + PAGE]),
            (Access::Write, [2 * PAGE, 2 * MIB + 2 * PAGE]),
        ] {
            for gpa in gpas {
                let pinned = test.guest.pin(bytes(gpa + 8, 8), access).unwrap();
                let device = pinned.slices().next().unwrap();
                assert_eq!(device.read_obj::<u64>(0).unwrap(), word(gpa + 8));
                test.store(gpa + 8, gpa);
                assert_eq!(device.read_obj::<u64>(0).unwrap(), gpa, "{access} {pages}");
                if access == Access::Write {
                    device.write_obj(!gpa, 0).unwrap();
                    assert_eq!(test.load(gpa + 8), !gpa);
                }
                drop(pinned);
                other.expect_image(gpa, PAGE);
            }
        }
        assert_eq!(test.own_pages(), 4);
        assert!(test.guest.stats().pins.shared >= 2, "{:?}", test.guest.stats().pins);
        end(&mm, [test, other], image);
    }
}

/// A range over pages of all kinds: untouched, the image's by a huge leaf, the guest's own.
#[test]
fn a_pinned_range_is_read_as_the_guest_reads_it() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(8 * MIB);
    let (mm, image) = open(32 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size2M);
    test.expect_image(2 * MIB, PAGE);
    test.store(4 * MIB, 7);
    let pinned = test.guest.pin(bytes(0, 6 * MIB), Access::Read).unwrap();
    let mut at = 0;
    for slice in pinned.slices() {
        for offset in (0..slice.len()).step_by(8) {
            let expected = if at == 4 * MIB { 7 } else { word(at) };
            assert_eq!(slice.read_obj::<u64>(offset).unwrap(), expected, "at {at:#x}");
            at += 8;
        }
    }
    assert_eq!(at, 6 * MIB);
    drop(pinned);
    assert_eq!(test.own_pages(), 3 * 512);
    end(&mm, [test], image);
}

#[test]
fn a_page_that_is_taken_away_under_a_pin_stays_the_devices() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(2 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size4K);
    let pinned = test.guest.pin(bytes(PAGE, 8), Access::Write).unwrap();
    let device = pinned.slices().next().unwrap();
    test.guest.unmap(range(PAGE, PAGE)).unwrap();
    device.write_obj(7u64, 0).unwrap();
    test.expect_image(PAGE, PAGE);
    assert_eq!((device.read_obj::<u64>(0).unwrap(), mm.usage().orphans), (7, 1));
    drop(pinned);
    assert_eq!(mm.usage().orphans, 0);
    end(&mm, [test], image);
}

/// RAM that only shows an image is never replaced: a device reads the image's own page, and cannot write.
#[test]
fn a_shared_image_can_be_pinned_for_reading_only() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_shared(&mm, &image, pages);
        let pinned = test.guest.pin(bytes(2 * MIB - PAGE, 2 * PAGE), Access::Read).unwrap();
        let words: Vec<u64> =
            pinned.slices().map(|slice| slice.read_obj::<u64>(0).unwrap()).collect();
        assert_eq!(words[0], word(2 * MIB - PAGE));
        drop(pinned);
        let error = test.guest.pin(bytes(PAGE, 8), Access::Write).unwrap_err();
        let gpa = guest_mm::addr::Gpa::new(PAGE);
        assert_eq!(error, PinError::Fault(FaultError::ReadOnly { gpa }));
        assert_eq!(
            error.to_string(),
            "a device cannot use guest memory: write to the read-only page at guest-physical 0x1000"
        );
        assert_eq!(test.own_pages(), 0);
        end(&mm, [test], image);
    }
}

/// What cannot be copied for want of memory is not pinned, and the guest still reads it.
#[test]
fn a_pin_that_finds_no_frame_fails_by_name() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(2 * MIB);
    let (mm, image) = open(2 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size4K);
    test.expect_image(0, 2 * MIB);
    let error = test.guest.pin(bytes(PAGE, 8), Access::Read).unwrap_err();
    assert!(matches!(error, PinError::Fault(FaultError::Exhausted { .. })), "{error}");
    test.expect_image(0, 2 * MIB);
    end(&mm, [test], image);
}
