//! Images of several files, checked page by page, and read before anybody asks.

use guest_mm::fault::FaultError;
use guest_mm::image::{ImageError, Layers, LoadError, Needed, ReadError, page_sum};
use tests::require_userfaultfd;

use super::*;

/// A file in which every word of page `i` is `seed * 1000 + i`, and what it is made of.
fn layer(folder: &Scratch, name: &str, pages: u64, seed: u64) -> (PathBuf, Vec<u8>) {
    let words = (0..pages * 512).flat_map(|at| (seed * 1000 + at / 512).to_le_bytes());
    let bytes: Vec<u8> = words.collect();
    (folder.write(name, &bytes), bytes)
}

/// An image of two layers, the second of which has every third page.
fn layered(folder: &Scratch, pages: u64) -> Layers {
    let (first, below) = layer(folder, "first", pages, 1);
    let (second, above) = layer(folder, "second", pages, 2);
    let of: Vec<u8> = (0..pages).map(|page| (page % 3 == 0).into()).collect();
    let sums = of.iter().enumerate().map(|(page, &layer)| {
        let bytes = if layer == 0 { &below } else { &above };
        page_sum(&bytes[page * 4096..][..4096])
    });
    Layers { sums: sums.collect::<Vec<_>>().into(), files: vec![first, second], of, alone: false }
}

fn service() -> GuestMm {
    let choice = BackingChoice::Only(BackingKind::Memfd);
    GuestMm::new(choice, 16 * MIB, PageSize::Size4K).unwrap()
}

#[test]
fn each_page_comes_from_its_own_layer_however_much_is_read_at_once() {
    if !require_userfaultfd() {
        return;
    }
    let folder = Scratch::new();
    for pages in POLICIES {
        let mm = service();
        let image = mm.open_layers(layered(&folder, 1024)).unwrap();
        let test = add_over(&mm, &image, pages);
        for page in (0..1024).rev() {
            let layer = if page % 3 == 0 { 2 } else { 1 };
            assert_eq!(test.load(page * PAGE + 64), layer * 1000 + page);
        }
        end(&mm, [test], image);
    }
}

#[test]
fn a_page_that_is_damaged_stops_the_guest_before_it_has_it() {
    if !require_userfaultfd() {
        return;
    }
    let folder = Scratch::new();
    let mm = service();
    let layers = layered(&folder, 512);
    let damaged = File::options().write(true).open(&layers.files[1]).unwrap();
    damaged.write_all_at(&[0xff], 9 * PAGE + 100).unwrap();
    let image = mm.open_layers(layers).unwrap();
    let test = add_over(&mm, &image, PageSize::Size4K);
    assert_eq!(test.load(10 * PAGE), 1010, "others are as they were");
    let load = test.load_aside(9 * PAGE);
    match test.stop() {
        FaultError::Image { cause: LoadError::Read(ReadError::Damaged { page, path }), .. } => {
            assert_eq!((page, path.file_name().unwrap()), (9, "second".as_ref()));
        }
        other => panic!("{other}"),
    }
    load.join().unwrap();
    end(&mm, [test], image);
}

#[test]
fn layers_have_the_same_size_and_every_page_has_a_file() {
    if !require_userfaultfd() {
        return;
    }
    let folder = Scratch::new();
    let mm = service();
    let (short, _) = layer(&folder, "short", 511, 3);
    let good = layered(&folder, 512);
    let with = |files: Vec<PathBuf>, of: Vec<u8>| Layers { files, of, ..good.clone() };
    let open = |layers| mm.open_layers(layers).unwrap_err();
    let first = good.files[0].clone();
    let other = open(with(vec![first.clone(), short], Vec::new()));
    assert!(matches!(other, ImageError::OtherSize { has: 511, pages: 512, .. }), "{other}");
    assert!(matches!(open(with(Vec::new(), Vec::new())), ImageError::Nothing));
    assert!(matches!(open(with(vec![first], vec![0, 1])), ImageError::Nothing));
    mm.audit().unwrap();
}

#[test]
fn what_was_needed_first_is_noted_and_can_be_read_in_one_go() {
    if !require_userfaultfd() {
        return;
    }
    let folder = Scratch::new();
    let mm = service();
    let image = mm.open_layers(layered(&folder, 1500)).unwrap();
    let order = image.note_order();
    let test = add_over(&mm, &image, PageSize::Size4K);
    let touched = [700, 3, 4, 1499, 5];
    for page in touched {
        test.load(u64::from(page) * PAGE);
    }
    test.store(4 * PAGE, 1);
    test.store(9 * PAGE, 1);
    let needed = order.pages();
    let stored = needed.iter().filter(|needed| needed.stored).map(|needed| needed.page);
    assert_eq!(stored.collect::<Vec<_>>(), [4, 9]);
    let noted: Vec<u32> = needed.iter().map(|needed| needed.page).collect();
    assert!(touched.iter().all(|page| noted.contains(page)), "{noted:?}");
    assert_eq!(noted[0], 700);
    end(&mm, [test], image);

    let mm = service();
    let image = mm.open_layers(layered(&folder, 1500)).unwrap();
    let mut copied = vec![0; 3 * PAGE as usize];
    image.copy_out(699, &mut copied).unwrap();
    let firsts: Vec<_> = copied.chunks(PAGE as usize).map(|page| page[..8].to_vec()).collect();
    assert_eq!(firsts, [2699, 1700, 1701].map(u64::to_le_bytes));
    assert_eq!(image.nr_loaded(), 0);
    // Past the end, twice, and in no order.
    image.prefetch(&[&noted[..], &[9999, 3, 512, 511]].concat()).unwrap();
    assert_eq!(image.nr_loaded(), noted.len() as u64 + 2);
    let test = add_over(&mm, &image, PageSize::Size4K);
    touched.iter().for_each(|&page| {
        let layer = if page % 3 == 0 { 2 } else { 1 };
        assert_eq!(test.load(u64::from(page) * PAGE), layer * 1000 + u64::from(page));
    });
    end(&mm, [test], image);
}

/// It stores to a page that nobody has read: that needs no second page, and lies where the window points. Another guest that comes
/// after all finds the image's.
#[test]
fn a_guest_that_is_alone_over_an_image_gets_the_page_that_it_stores_to() {
    if !require_userfaultfd() {
        return;
    }
    let folder = Scratch::new();
    for pages in POLICIES {
        let mm = service();
        let image = mm.open_layers(Layers { alone: true, ..layered(&folder, 1024) }).unwrap();
        let order = image.note_order();
        let test = add_over(&mm, &image, pages);
        let stored = (0..300).map(|page| page * 3);
        std::thread::scope(|scope| {
            for cpu in 0..2 {
                let (test, stored) = (&test, stored.clone());
                scope.spawn(move || stored.for_each(|page| test.store(page * PAGE + 8 * cpu, 7)));
            }
        });
        let found = |test: &TestGuest, page: u64| [0, 8, 16].map(|at| test.load(page * PAGE + at));
        stored.clone().for_each(|page| assert_eq!(found(&test, page), [7, 7, 2000 + page]));
        assert_eq!(found(&test, 1), [1001; 3]);
        if pages == PageSize::Size4K {
            assert_eq!(test.own_pages(), 300);
            // Where both came at once, one of them has read it for nothing.
            assert!(image.nr_loaded() <= 1 + 300 / 3, "{} are loaded", image.nr_loaded());
        }
        let needed = order.pages();
        assert!(
            stored.clone().all(|page| needed.contains(&Needed { page: page as u32, stored: true }))
        );
        let other = add_over(&mm, &image, pages);
        stored.for_each(|page| assert_eq!(found(&other, page), [2000 + page; 3]));
        end(&mm, [test, other], image);
    }
}
