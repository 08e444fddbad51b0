//! What arrives, and what is lifted, on memory with a fake window.

use crate::addr::{BlockNo, Gfn, GfnRange, PageSize};
use crate::audit::audit;
use crate::copy;
use crate::entry::Marker;
use crate::fault::populate;
use crate::lift::{Held, holding, lift, missing};
use crate::mark::mark;
use crate::mirrors::fake::Fake;
use crate::pool::{BackingChoice, BackingKind, Pool};
use crate::protocol::Sound;
use crate::space::{AddressSpace, FaultPolicy, RamRegion};
use crate::sync::Arc;

use super::{Arriving, BlockParcel, Onto, Page, arrive, place_block};

const BLOCK: u64 = 512;

/// Three blocks.
fn space() -> AddressSpace<Sound> {
    let range = GfnRange::new(Gfn::new(0), 3 * BLOCK).unwrap();
    let choice = BackingChoice::Only(BackingKind::Memfd);
    let pool = Pool::new(choice, 4 << 21, PageSize::Size4K).unwrap();
    let ram = vec![RamRegion { range, origin: BlockNo::new(0), over: None }];
    let policy = FaultPolicy { pages: PageSize::Size4K };
    AddressSpace::new(ram, Arc::new(pool), Box::new(Fake::new()), policy, None)
}

fn block(index: u64) -> GfnRange {
    GfnRange::new(Gfn::new(index * BLOCK), BLOCK).unwrap()
}

fn gfn(at: u64) -> Gfn {
    Gfn::new(at)
}

fn page(byte: u8) -> Page {
    [byte; 4096]
}

/// The first byte of the page, if it is there.
fn seen(space: &AddressSpace<Sound>, at: u64) -> Option<u8> {
    let mut byte = [0];
    copy::read(space, gfn(at).gpa(), &mut byte).ok().map(|()| byte[0])
}

#[test]
fn what_arrives_fills_what_is_missing_and_nothing_else() {
    let space = space();
    mark(&space, block(0), Marker::Missing).unwrap();
    let (one, two) = (page(1), page(2));
    let came = |pages: Vec<Arriving<'_>>| {
        arrive(&space, gfn(8), Onto::Missing, pages.into_iter()).unwrap()
    };
    let bytes = Arriving::Bytes;
    let first = came(vec![bytes(&one), Arriving::Zero, Arriving::Nothing]);
    assert_eq!((first.pages, first.duplicates), (3, 0));
    assert_eq!([8, 9, 10, 11].map(|at| seen(&space, at)), [Some(1), Some(0), None, None]);
    // A second time, and one page more.
    let again = came(vec![bytes(&two); 4]);
    assert_eq!((again.pages, again.duplicates), (1, 3));
    assert_eq!([8, 9, 10, 11].map(|at| seen(&space, at)), [Some(1), Some(0), None, Some(2)]);
    // Nothing of these was ever missing.
    let elsewhere = arrive(&space, gfn(BLOCK), Onto::Missing, [bytes(&one)].into_iter()).unwrap();
    assert_eq!((elsewhere.pages, elsewhere.duplicates), (0, 1));
    assert_eq!(seen(&space, BLOCK), None);
    audit(&space).unwrap();
}

#[test]
fn a_block_whose_last_page_arrives_is_huge() {
    let space = space();
    mark(&space, block(1), Marker::Missing).unwrap();
    let pages: Vec<Page> = (0..BLOCK).map(|index| page(index as u8)).collect();
    let send = |from: usize, to: usize| {
        let pages = pages[from..to].iter().map(Arriving::Bytes);
        arrive(&space, gfn(BLOCK + from as u64), Onto::Missing, pages).unwrap()
    };
    assert!(!send(100, 512).huge);
    assert_eq!(missing(&space), [GfnRange::new(gfn(BLOCK), 100).unwrap()]);
    assert!(send(0, 100).huge);
    assert_eq!(missing(&space), []);
    audit(&space).unwrap();
}

#[test]
fn a_whole_block_is_placed_where_all_of_it_is_missing() {
    let space = space();
    mark(&space, block(0), Marker::Missing).unwrap();
    mark(&space, block(1), Marker::Missing).unwrap();
    let parcel = |index: u64, byte: u8| {
        let mut parcel = BlockParcel::new(&space, block(index).start()).unwrap();
        parcel.bytes().fill(byte);
        parcel
    };
    assert!(place_block(&space, parcel(0, 7), Onto::Missing).unwrap().unwrap().huge);
    // One page of this one is there already.
    let own = page(9);
    let came = arrive(&space, gfn(BLOCK + 3), Onto::Missing, [Arriving::Bytes(&own)].into_iter());
    assert_eq!(came.unwrap().pages, 1);
    assert!(place_block(&space, parcel(1, 8), Onto::Missing).unwrap().is_err());
    // This one is not missing at all.
    assert!(place_block(&space, parcel(2, 8), Onto::Missing).unwrap().is_err());
    let found = [0, 511, BLOCK, BLOCK + 3, 2 * BLOCK].map(|at| seen(&space, at));
    assert_eq!(found, [Some(7), Some(7), None, Some(9), None]);
    audit(&space).unwrap();
}

#[test]
fn before_the_guest_runs_what_comes_later_counts() {
    let space = space();
    let send = |at: u64, page: Arriving<'_>| {
        arrive(&space, gfn(at), Onto::Resting, [page].into_iter()).unwrap()
    };
    let (one, two) = (page(1), page(2));
    send(5, Arriving::Bytes(&one));
    send(5, Arriving::Bytes(&two));
    send(6, Arriving::Bytes(&one));
    send(6, Arriving::Nothing);
    send(7, Arriving::Nothing);
    assert_eq!([5, 6, 7].map(|at| seen(&space, at)), [Some(2), Some(0), None]);
    let mut parcel = BlockParcel::new(&space, block(1).start()).unwrap();
    parcel.bytes().fill(3);
    assert!(place_block(&space, parcel, Onto::Resting).unwrap().unwrap().huge);
    send(BLOCK + 1, Arriving::Bytes(&one));
    assert_eq!([BLOCK, BLOCK + 1].map(|at| seen(&space, at)), [Some(3), Some(1)]);
    audit(&space).unwrap();
}

#[test]
fn what_is_lifted_says_what_each_page_holds() {
    let space = space();
    populate(&space, GfnRange::new(gfn(1), 2).unwrap()).unwrap();
    copy::write(&space, gfn(2).gpa(), &page(6)).unwrap();
    mark(&space, GfnRange::new(gfn(3), 1).unwrap(), Marker::Missing).unwrap();
    mark(&space, GfnRange::new(gfn(4), 1).unwrap(), Marker::Guard).unwrap();
    let mut bytes = vec![0xff; 5 * 4096];
    let lifted = lift(&space, gfn(0), &mut bytes).unwrap();
    let expected = [Held::Zeroes, Held::Bytes, Held::Bytes, Held::Missing, Held::Forbidden];
    assert_eq!(lifted, expected);
    assert_eq!([0, 1, 2].map(|index| bytes[index * 4096]), [0xff, 0, 6]);
    assert_eq!(holding(&space), [GfnRange::new(gfn(1), 3).unwrap()]);
}
