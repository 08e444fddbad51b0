//! What arrives, and what is lifted, on memory with a fake window.

use crate::addr::{BlockNo, Gfn, GfnRange, PageSize};
use crate::audit::audit;
use crate::copy;
use crate::entry::Marker;
use crate::fault::populate;
use crate::lift::{Held, holding, holds_bytes, lift, missing};
use crate::mark::mark;
use crate::mirrors::fake::Fake;
use crate::pool::{BackingChoice, BackingKind, Pool};
use crate::protocol::Sound;
use crate::space::{AddressSpace, FaultPolicy, RamRegion};
use crate::sync::Arc;

use super::{Arriving, BlockParcel, Onto, Page, RunParcel, arrive, place_block};

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
    let again = came([&two; 4].map(bytes).into());
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
    let bytes_in = |start, frames| holds_bytes(&space, GfnRange::new(gfn(start), frames).unwrap());
    assert_eq!([bytes_in(1, 2), bytes_in(0, 2), bytes_in(2, 2)], [true, false, false]);
}

/// Frames for `frames` pages from `at` on, filled with `byte`.
fn run(
    space: &AddressSpace<Sound>,
    at: u64,
    frames: u64,
    onto: Onto,
    byte: u8,
) -> Option<RunParcel> {
    let range = GfnRange::new(gfn(at), frames).unwrap();
    let mut run = RunParcel::new(space, range, onto).unwrap()?;
    run.bytes().fill(byte);
    Some(run)
}

#[test]
fn a_run_is_filled_where_it_stays_and_gives_back_what_came_meanwhile() {
    let space = space();
    mark(&space, block(0), Marker::Missing).unwrap();
    let own = page(9);
    let one = |at| {
        let page = [Arriving::Bytes(&own)].into_iter();
        arrive(&space, gfn(at), Onto::Missing, page).unwrap()
    };
    let come = |at, run: RunParcel| {
        arrive(&space, gfn(at), Onto::Missing, run.map(Arriving::Frame)).unwrap()
    };
    assert_eq!(one(8).pages, 1);
    assert!(run(&space, 5, 10, Onto::Missing, 1).is_none(), "a page of it is there");
    let used = space.pool.usage().used;
    drop(run(&space, 20, 10, Onto::Missing, 1).expect("all of it is missing"));
    assert_eq!(space.pool.usage().used, used);
    let before = run(&space, 0, 8, Onto::Missing, 1).unwrap();
    let behind = run(&space, 9, BLOCK - 9, Onto::Missing, 2).unwrap();
    assert!(run(&space, 9, 1, Onto::Missing, 3).is_none(), "its frame is taken");
    assert_eq!((come(0, before).huge, seen(&space, 7)), (false, Some(1)));
    // It is asked for, and lies elsewhere; the guest has it first.
    assert_eq!(one(100).pages, 1);
    let came = come(9, behind);
    assert_eq!((came.pages, came.duplicates, came.huge), (BLOCK - 10, 1, false));
    let found = [8, 9, 99, 100, 511].map(|at| seen(&space, at));
    assert_eq!(found, [Some(9), Some(2), Some(2), Some(9), Some(2)]);
    assert_eq!(space.pool.usage().used, BLOCK);
    audit(&space).unwrap();
    // Nobody came between.
    mark(&space, block(1), Marker::Missing).unwrap();
    let all = run(&space, BLOCK, BLOCK, Onto::Missing, 4).unwrap();
    assert!(come(BLOCK, all).huge);
    audit(&space).unwrap();
}

#[test]
fn a_run_that_comes_again_before_the_guest_runs_counts() {
    let space = space();
    let first = run(&space, 3, 4, Onto::Resting, 1).unwrap();
    let second = page(2);
    arrive(&space, gfn(5), Onto::Resting, [Arriving::Bytes(&second)].into_iter()).unwrap();
    let came = arrive(&space, gfn(3), Onto::Resting, first.map(Arriving::Frame)).unwrap();
    assert_eq!((came.pages, came.duplicates), (4, 0));
    assert_eq!([2, 3, 5, 6, 7].map(|at| seen(&space, at)), [None, Some(1), Some(1), Some(1), None]);
    assert_eq!(space.pool.usage().used, 4);
    audit(&space).unwrap();
}
