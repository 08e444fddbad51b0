//! A guest's memory through the traits of `vm-memory`.

use std::io::ErrorKind;

use guest_mm::addr::PageSize;
use guest_mm::collapse::{CollapsePolicy, Skip};
use guest_mm::entry::Marker;
use guest_mm::pool::{BackingChoice, BackingKind};
use guest_mm::prot::Prot;
use guest_mm::{GuestMm, GuestView};
use tests::require_userfaultfd;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use super::collapse::scattered;
use super::{MIB, TestGuest, add, range, service};

const PAGE: u64 = 4096;

/// Bytes and guest-physical addresses of accesses that end in a page, cross into the next, cross several, and
/// cross into the next block.
const ACCESSES: [(u64, usize); 6] = [
    (8, 64),
    (7 * PAGE - 5, 10),
    (20 * PAGE + 1, 5 * PAGE as usize),
    (2 * MIB - 3, 6),
    (2 * MIB - 9 * PAGE - 100, 20 * PAGE as usize),
    (4 * MIB - PAGE, 2 * PAGE as usize),
];

/// The byte that belongs at `gpa`.
fn pattern(gpa: u64, salt: u64) -> u8 {
    ((gpa ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn load_byte(test: &TestGuest, gpa: u64) -> u8 {
    test.load(gpa & !7).to_le_bytes()[gpa as usize % 8]
}

fn store_byte(test: &TestGuest, gpa: u64, value: u8) {
    let mut word = test.load(gpa & !7).to_le_bytes();
    word[gpa as usize % 8] = value;
    test.store(gpa & !7, u64::from_le_bytes(word));
}

fn is_scattered(test: &TestGuest) -> bool {
    test.guest.memory_map().blocks[0].scattered > 0
}

/// A pool in which a block can be made to lie anywhere, with its first guest.
fn with_a_scattered_block() -> (GuestMm, TestGuest) {
    let choice = BackingChoice::Only(BackingKind::Memfd);
    let mm = GuestMm::new(choice, 64 * MIB, PageSize::Size4K).unwrap();
    let test = scattered(&mm);
    assert!(is_scattered(&test));
    (mm, test)
}

#[test]
fn a_view_and_the_guest_share_every_byte_over_any_border() {
    if !require_userfaultfd() {
        return;
    }
    let (mm, test) = with_a_scattered_block();
    let bytes = |gpa: u64, len: usize, salt| -> Vec<u8> {
        (gpa..gpa + len as u64).map(|at| pattern(at, salt)).collect()
    };
    for (salt, &(gpa, len)) in (1u64..).zip(&ACCESSES) {
        let view = test.guest.view();
        view.write_slice(&bytes(gpa, len, salt), GuestAddress(gpa)).unwrap();
        for at in gpa..gpa + len as u64 {
            assert_eq!(load_byte(&test, at), pattern(at, salt), "written by the device at {at:#x}");
            store_byte(&test, at, pattern(at, !salt));
        }
        let mut found = vec![0; len];
        view.read_slice(&mut found, GuestAddress(gpa)).unwrap();
        assert_eq!(found, bytes(gpa, len, !salt), "written by the guest");
        // Of these two only the first has to be a word of one page.
        let word = GuestAddress(gpa & !7);
        view.store(salt, word, std::sync::atomic::Ordering::Relaxed).unwrap();
        assert_eq!(test.load(word.0), salt);
        view.write_obj(!salt, GuestAddress(gpa)).unwrap();
        assert_eq!(view.read_obj::<u64>(GuestAddress(gpa)).unwrap(), !salt);
    }
    test.guest.audit().unwrap();
    test.close();
    mm.audit().unwrap();
}

/// Pages that lie in order are one slice, whoever pinned them before; each is pinned once for each kind of
/// access.
#[test]
fn a_view_pins_a_page_once_and_lends_few_slices() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    let view = test.guest.view();
    let slices = |gpa, len, permissions| {
        view.get_slices(GuestAddress(gpa), len, permissions).unwrap().map(Result::unwrap).count()
    };
    let pinned = || test.guest.stats().pins.ranges;
    view.write_obj(1u8, GuestAddress(2 * PAGE)).unwrap();
    view.read_obj::<u8>(GuestAddress(PAGE)).unwrap();
    view.read_obj::<u8>(GuestAddress(4 * PAGE)).unwrap();
    assert_eq!(pinned(), 3);
    assert_eq!(slices(10, 6 * PAGE as usize, Permissions::Read), 1);
    assert_eq!(pinned(), 6, "three gaps: page 0, page 3, and from page 5 on");
    assert_eq!(slices(0, 7 * PAGE as usize, Permissions::Read), 1);
    assert_eq!(pinned(), 6);
    assert_eq!(slices(0, 7 * PAGE as usize, Permissions::ReadWrite), 1);
    assert_eq!(pinned(), 8, "all but page 2 were pinned for reading");
    assert_eq!(slices(0, 0, Permissions::Write), 0);
    drop(view);
    let mut dirty = Vec::new();
    test.guest.take_dirty(range(0, 4 * MIB), |gfn| dirty.push(gfn.as_u64()));
    assert_eq!(dirty, [0, 1, 2, 3, 4, 5, 6]);
    test.close();
}

/// A page that is taken away stays with the view that used it, and is free when the view has gone. What is
/// pinned for writing later is the guest's new page, and the view reads what it wrote.
#[test]
fn a_view_keeps_the_pages_it_used_and_never_misses_its_own_writes() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    let at = GuestAddress(3 * PAGE);
    test.store(at.0, 1);
    let view = test.guest.view();
    assert_eq!(view.read_obj::<u64>(at).unwrap(), 1);
    test.guest.unmap(range(at.0, PAGE)).unwrap();
    assert_eq!(mm.usage().orphans, 1);
    test.store(at.0, 2);
    assert_eq!(view.read_obj::<u64>(at).unwrap(), 1, "the page that it used before");
    view.write_obj(3u64, at).unwrap();
    assert_eq!(test.load(at.0), 3);
    assert_eq!(view.read_obj::<u64>(at).unwrap(), 3);
    drop(view);
    assert_eq!(mm.usage().orphans, 0);
    mm.audit().unwrap();
    test.close();
}

fn io_error(error: &GuestMemoryError) -> &std::io::Error {
    match error {
        GuestMemoryError::IOError(error) => error,
        error => panic!("{error}"),
    }
}

fn check(view: &GuestView<'_>, gpa: u64, len: usize) -> [bool; 2] {
    [Permissions::Read, Permissions::Write]
        .map(|permissions| view.check_range(GuestAddress(gpa), len, permissions))
}

#[test]
fn a_view_refuses_what_the_guests_pages_do_not_allow() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(8 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    test.guest.populate(range(0, 2 * MIB)).unwrap();
    test.guest.protect(range(PAGE, PAGE), Prot::R).unwrap();
    test.guest.mark(range(3 * MIB, PAGE), Marker::Guard).unwrap();
    let view = test.guest.view();

    // A read-only page; a range that ends in it is refused whole.
    let error = view.write_obj(1u8, GuestAddress(PAGE)).unwrap_err();
    assert_eq!(io_error(&error).kind(), ErrorKind::PermissionDenied);
    assert_eq!(
        io_error(&error).to_string(),
        "a device cannot use guest memory: write to the read-only page at guest-physical 0x1000"
    );
    assert!(view.write(&[1; 16], GuestAddress(PAGE - 8)).is_err());
    assert_eq!(test.load(PAGE - 8), 0);
    assert_eq!(view.read_obj::<u8>(GuestAddress(PAGE)).unwrap(), 0);
    assert_eq!(check(&view, PAGE - 8, 16), [true, false]);

    // A guard page.
    let error = view.read_obj::<u8>(GuestAddress(3 * MIB + 5)).unwrap_err();
    assert_eq!(io_error(&error).kind(), ErrorKind::PermissionDenied);
    assert_eq!(
        io_error(&error).to_string(),
        "a device cannot use guest memory: read of the guard page at guest-physical 0x300000"
    );
    assert_eq!(check(&view, 3 * MIB - 1, 2), [false, false]);
    assert_eq!(check(&view, 0, 2 * MIB as usize), [true, false]);
    assert_eq!(check(&view, 2 * MIB, MIB as usize), [true, true], "untouched");

    // Beyond RAM, beyond the tables, beyond everything: nothing is faulted in on the way there.
    let mapped = test.guest.stats().resident.frames();
    for (gpa, len, first) in [
        (4 * MIB, 1, 4 * MIB),
        (2 * MIB, 3 * MIB as usize, 4 * MIB),
        ((1 << 48) - 1, 2, (1 << 48) - 1),
        (u64::MAX, usize::MAX, u64::MAX),
    ] {
        for permissions in [Permissions::No, Permissions::Read, Permissions::Write] {
            let error = view.get_slices(GuestAddress(gpa), len, permissions).map(|_| ());
            let error = error.unwrap_err();
            assert!(
                matches!(error, GuestMemoryError::InvalidGuestAddress(at) if at.0 == first),
                "{error}"
            );
        }
        assert_eq!(check(&view, gpa, len), [false, false]);
    }
    assert_eq!(check(&view, u64::MAX, 0), [true, true]);
    assert_eq!(test.guest.stats().resident.frames(), mapped);
    drop(view);
    test.close();
}

#[test]
fn an_exhausted_pool_is_out_of_memory_for_a_device() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(2 * MIB, PageSize::Size4K);
    let test = add(&mm, 4 * MIB, PageSize::Size4K);
    let view = test.guest.view();
    let error = view.write_slice(&vec![1; 3 * MIB as usize], GuestAddress(0)).unwrap_err();
    assert_eq!(io_error(&error).kind(), ErrorKind::OutOfMemory);
    test.guest.unmap(range(0, 4 * MIB)).unwrap();
    assert_eq!(mm.usage().orphans, 0, "what was refused is not pinned");
    drop(view);
    test.close();
}

#[test]
fn nothing_is_pinned_when_the_view_has_gone() {
    if !require_userfaultfd() {
        return;
    }
    let (mm, test) = with_a_scattered_block();
    let view = test.guest.view();
    assert_eq!(view.read_obj::<u64>(GuestAddress(5 * PAGE + 8)).unwrap(), 5 * PAGE);
    let report = test.guest.collapse(range(0, 2 * MIB), CollapsePolicy::default()).unwrap();
    assert!(matches!(report.skipped[0].why, Skip::Pinned { gfn } if gfn.as_u64() == 5));
    drop(view);
    let report = test.guest.collapse(range(0, 2 * MIB), CollapsePolicy::default()).unwrap();
    assert_eq!((report.copied, report.skipped.len()), (1, 0));
    assert_eq!(test.load(5 * PAGE + 8), 5 * PAGE);
    test.close();
    mm.audit().unwrap();
}
