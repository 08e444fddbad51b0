//! Files that are no image, that are too short for what lies over them, and that somebody changes while guests run.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use guest_mm::addr::{Gpa, PageSize};
use guest_mm::fault::FaultError;
use guest_mm::image::{ImageError, LoadError, ReadError};
use guest_mm::pin::PinError;
use guest_mm::prot::Access;
use guest_mm::service::GuestError;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tests::{require_userfaultfd, skip_unless_refused};

use super::super::collapse::bytes;
use super::super::service;
use super::*;

fn refused(mm: &GuestMm, path: &Path) -> (ImageError, String) {
    let error = mm.open_image(path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()) && text.lines().count() == 1, "{text}");
    mm.audit().unwrap();
    (error, text)
}

#[test]
fn what_is_no_image_is_refused_by_name_and_at_once() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size4K);
    let folder = Scratch::new();
    let at = |name: &str| folder.path().join(name);
    let pipe = at("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
    for (path, says) in [
        (at("nothing"), "cannot be opened: No such file"),
        (folder.path().to_owned(), "is a folder; an image is a regular file"),
        (pipe, "is a pipe"),
        (at("socket"), "is a socket"),
        ("/dev/zero".into(), "is a device"),
        (at("loop"), "symbolic links"),
        // A regular file that not even root may read.
        ("/proc/self/mem".into(), "0 bytes"),
        (folder.write("empty", ""), "has 0 bytes, which is not a multiple of 4096 above 0"),
        (folder.write("cut", vec![0; 4095]), "has 4095 bytes"),
        (folder.write("long", vec![0; 4097]), "has 4097 bytes"),
    ] {
        let (_, text) = refused(&mm, &path);
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(mm.usage().reserved, 0);
}

#[test]
fn an_image_larger_than_any_guest_is_refused_before_anything_is_allocated() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(4 * MIB, PageSize::Size4K);
    let folder = Scratch::new();
    let path = folder.write("sparse", "");
    let file = File::options().write(true).open(&path).unwrap();
    if file.set_len(1 << 44).is_err() {
        return; // this file system has no files as large
    }
    let (error, _) = refused(&mm, &path);
    assert!(matches!(error, ImageError::TooLarge { .. }));
}

#[test]
fn a_pool_of_huge_pages_takes_no_image() {
    if !require_userfaultfd() {
        return;
    }
    let choice = BackingChoice::Only(BackingKind::Hugetlb);
    let mm = match GuestMm::new(choice, 4 * MIB, PageSize::Size2M) {
        Ok(mm) => mm,
        Err(error) => {
            skip_unless_refused(&error.to_string());
            return;
        }
    };
    let template = Template::new(2 * MIB);
    let (error, text) = refused(&mm, &template.path);
    assert!(matches!(error, ImageError::Granule { .. }));
    assert!(text.contains("no pages of 4 KiB; let the pool lie on a memfd or tmpfs"), "{text}");
}

#[test]
fn ram_that_does_not_fit_its_image_is_refused_by_name() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let (other, foreign) = open(4 * MIB, &template);
    let refused = |over: Vec<ImageRam>, ram| {
        let error = mm.add_guest(GuestConfig { over, ram, ..nothing(PageSize::Size4K) });
        let error = error.unwrap_err();
        let text = error.to_string();
        let by_name = text.contains(&template.path.display().to_string());
        assert!(by_name || matches!(error, GuestError::Overlap(..) | GuestError::Unaligned(_)));
        text
    };
    let at = |range| over(&image, range);
    let half = refused(vec![ImageRam { first: 512, ..at(range(0, 4 * MIB)) }], vec![]);
    assert!(half.contains("1024 pages") && half.contains("has 1024: it needs a larger"), "{half}");
    let long = refused(vec![at(range(0, 4 * MIB + PAGE))], vec![]);
    assert!(long.contains("1025 pages"), "{long}");
    let far = refused(vec![ImageRam { first: u64::MAX - 511, ..at(range(0, 4 * MIB)) }], vec![]);
    assert!(far.contains("it needs a larger image"), "{far}");
    let odd = refused(vec![ImageRam { first: 1, ..at(range(0, 2 * MIB)) }], vec![]);
    assert!(odd.contains("page 1 of the image") && odd.contains("multiple of 512"), "{odd}");
    let twice = vec![at(range(0, 4 * MIB)), at(range(2 * MIB, 2 * MIB))];
    assert!(refused(twice, vec![]).contains("overlaps"));
    assert!(refused(vec![at(range(0, 4 * MIB))], vec![range(0, PAGE)]).contains("overlaps"));
    let unaligned = refused(vec![at(range(PAGE, 2 * MIB))], vec![]);
    assert!(unaligned.contains("multiple of 2 MiB"), "{unaligned}");
    let strange = refused(vec![over(&foreign, range(0, 2 * MIB))], vec![]);
    assert!(strange.contains("belongs to another service"), "{strange}");
    end(&mm, [], image);
    end(&other, [], foreign);
}

/// What is done to a file that guests lie over, and what the error says of it.
fn while_guests_run(change: impl Fn(&Template), says: &str) {
    for pages in POLICIES {
        let template = Template::new(6 * MIB);
        let (mm, image) = open(32 * MIB, &template);
        let [reads, stores] = [(); 2].map(|()| add_over(&mm, &image, pages));
        reads.expect_image(0, 2 * MIB);
        stores.store(PAGE, 1);
        let loaded = image.nr_loaded();
        // Where times of files are coarse, sooner would not be noticed.
        std::thread::sleep(Duration::from_millis(20));
        change(&template);
        // Reads and stores wait for a page that will not come: both guests are stopped with the reason.
        let read = reads.load_aside(4 * MIB);
        let store = stores.store_aside(5 * MIB);
        for (test, gpa, access) in
            [(&reads, 4 * MIB, Access::Read), (&stores, 5 * MIB, Access::Write)]
        {
            let stop = test.stop();
            let FaultError::Image { gpa: at, access: tried, cause } = &stop else {
                panic!("{stop}");
            };
            assert_eq!((at.as_u64(), *tried), (gpa, access));
            assert!(matches!(cause, LoadError::Read(ReadError::Changed { .. })), "{cause}");
            let text = stop.to_string();
            let path = template.path.display().to_string();
            assert!(text.contains(says) && text.contains(&path), "{text}");
        }
        read.join().unwrap();
        store.join().unwrap();
        let error = reads.guest.pin(bytes(3 * MIB, 8), Access::Read).unwrap_err();
        assert!(matches!(error, PinError::Fault(FaultError::Image { .. })), "{error}");
        // What was loaded stays what it was, and nothing of the new file got in.
        assert_eq!(image.nr_loaded(), loaded);
        reads.expect_image(0, 2 * MIB);
        stores.expect_image(2 * PAGE, 4 * PAGE);
        assert_eq!(stores.load(PAGE), 1);
        end(&mm, [reads, stores], image);
    }
}

#[test]
fn a_file_that_is_cut_stops_its_guests_and_never_kills_the_monitor() {
    if require_userfaultfd() {
        while_guests_run(
            |template| template.file().set_len(MIB).unwrap(),
            "it had 6291456 bytes and has 1048576",
        );
    }
}

#[test]
fn a_file_that_grows_stops_its_guests() {
    if require_userfaultfd() {
        while_guests_run(
            |template| template.file().set_len(8 * MIB).unwrap(),
            "it had 6291456 bytes and has 8388608",
        );
    }
}

#[test]
fn a_file_that_is_written_to_stops_its_guests() {
    if require_userfaultfd() {
        while_guests_run(|template| template.overwrite(3 * MIB, b"x"), "somebody wrote to it");
    }
}

/// How a template is replaced while guests run: those that run have the old one.
#[test]
fn a_file_that_is_replaced_or_removed_is_still_there_for_its_guests() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(4 * MIB);
    let (mm, image) = open(16 * MIB, &template);
    let test = add_over(&mm, &image, PageSize::Size4K);
    test.expect_image(0, PAGE);
    let beside = template.path.with_extension("new");
    std::fs::write(&beside, vec![0; 4 << 20]).unwrap();
    std::fs::rename(&beside, &template.path).unwrap();
    test.expect_image(MIB, MIB);
    std::fs::remove_file(&template.path).unwrap();
    test.expect_image(0, 4 * MIB);
    end(&mm, [test], image);
}

#[test]
fn holes_of_a_file_read_as_zeroes() {
    if !require_userfaultfd() {
        return;
    }
    let template = Template::new(PAGE);
    template.file().set_len(4 * MIB).unwrap();
    template.overwrite(3 * MIB, &7u64.to_le_bytes());
    for pages in POLICIES {
        let (mm, image) = open(16 * MIB, &template);
        let test = add_over(&mm, &image, pages);
        test.expect_image(0, PAGE);
        let zero = (PAGE..4 * MIB).step_by(PAGE as usize).filter(|&at| test.load(at) != 0);
        assert_eq!(zero.collect::<Vec<_>>(), [3 * MIB]);
        test.store(MIB, 1);
        assert_eq!((test.load(MIB), test.load(MIB + 8)), (1, 0));
        end(&mm, [test], image);
    }
}

/// Where the kernel tells writes apart that follow a look (from Linux 6.13 on, most file systems), even a write at once
/// is noticed; where not, the module says so.
#[test]
fn a_write_right_behind_the_opening_is_noticed_where_times_are_fine() {
    if !require_userfaultfd() {
        return;
    }
    let mut missed = 0;
    for _ in 0..20 {
        let template = Template::new(2 * MIB);
        let (mm, image) = open(4 * MIB, &template);
        let test = add_over(&mm, &image, PageSize::Size4K);
        template.overwrite(PAGE, &[0; 8]);
        let found = test.guest.fault(Gpa::new(PAGE), Access::Read);
        missed += u32::from(found.is_ok());
        end(&mm, [test], image);
    }
    println!("{missed} of 20 writes were missed");
    assert!(missed == 0 || !has_fine_times(), "{missed} of 20 writes were missed");
}

/// Whether a write that follows a look at a file's time always has another.
fn has_fine_times() -> bool {
    (0..20).all(|_| {
        let template = Template::new(PAGE);
        let before = std::fs::metadata(&template.path).unwrap().modified().unwrap();
        template.overwrite(0, &[0; 8]);
        std::fs::metadata(&template.path).unwrap().modified().unwrap() != before
    })
}
