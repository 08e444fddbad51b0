//! Giving memory back, against who uses it and against who fills it.

use crate::addr::{Gfn, GfnRange, GpaRange, PageSize};
use crate::collapse::{CollapsePolicy, Collapsed, Skip, collapse_block};
use crate::entry::{Entry, Marker};
use crate::geometry::FRAME_BYTES;
use crate::model::{World, block, explore_bounded};
use crate::pin::pin;
use crate::prot::Access;
use crate::protocol::Sound;

use super::{give_back, take_back};

fn entry(world: &World<Sound>, gfn: u64) -> Entry {
    world.space.table.walk(&world.space.table.enter(), Gfn::new(gfn)).entry
}

fn is_returned(world: &World<Sound>, gfn: u64) -> bool {
    entry(world, gfn) == Entry::Marker(Marker::Returned)
}

/// A device writes 7 to a page, and looks whether it stays for as long as it has the page pinned.
fn dma(world: &World<Sound>) {
    let page = GpaRange::new(Gfn::new(0).gpa(), FRAME_BYTES).unwrap();
    let pinned = pin(&world.space, page, Access::Write, None).expect("the page can be used");
    let memory = world.space.pool.memory();
    memory.write(pinned.first_frame(), 7);
    assert!(memory.read(pinned.first_frame()) == 7, "the host took a page that a device had");
}

/// A page alone: with another page that is touched meanwhile there are a million interleavings more.
#[test]
fn a_page_that_is_given_back_under_a_pin_stays_until_the_pin_goes() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.touch(0);
        let device = world.beside(dma);
        let page = GfnRange::new(Gfn::new(0), 1).unwrap();
        let given = give_back(&world.space, page).unwrap();
        assert!(given.pages == 1);
        device.join().unwrap();
        let here = world.frame(0).is_some();
        assert!(here != is_returned(&world, 0), "the page is there, or it is marked");
        world.check();
    });
}

#[test]
fn a_block_that_is_given_back_under_a_pin_stays_until_the_pin_goes() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size2M, 6);
        world.touch(0);
        let device = world.beside(dma);
        give_back(&world.space, block(0)).unwrap();
        // Another guest page, perhaps in the frame that was given back.
        world.touch(2);
        assert!(world.value(2) == 0, "a device wrote to another's page");
        device.join().unwrap();
        assert!(world.value(2) == 0, "a device wrote to another's page");
        let here = world.frame(0).is_some();
        assert!(here != is_returned(&world, 0), "the page is there, or it is marked");
        assert!(is_returned(&world, 1), "nobody has used this page");
        world.check();
    });
}

#[test]
fn a_collapse_does_not_undo_what_is_given_back_meanwhile() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.scatter();
        let page = GfnRange::new(Gfn::new(1), 1).unwrap();
        let other = world.beside(move |world| give_back(&world.space, page).unwrap());
        let policy = CollapsePolicy { max_holes: 1, ..CollapsePolicy::default() };
        let collapsed = collapse_block(&world.space, block(0), policy).unwrap();
        let given = other.join().unwrap();
        assert!(given.pages == 1 && given.pinned == 0);
        let skipped = Collapsed::Skipped(Skip::Returned { gfn: Gfn::new(1) });
        assert!(collapsed == skipped || collapsed == Collapsed::Copied { pages: 2, holes: 0 });
        assert!(is_returned(&world, 1), "the collapse filled what was given back");
        assert!(world.frame(0).is_some(), "the other page is gone");
        world.check();
    });
}

#[test]
fn a_touch_finds_the_page_as_it_was_or_zeroes() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.store_or_touch(0, 5);
        let guest = world.beside(|world| world.load(0));
        give_back(&world.space, block(0)).unwrap();
        let found = guest.join().unwrap();
        assert!(found == 5 || found == 0, "the guest found another's bytes");
        assert!(is_returned(&world, 1), "a touch took more than its page");
        if world.frame(0).is_some() {
            assert!(world.value(0) == 0, "what was given back is still there");
        }
        world.check();
    });
}

#[test]
fn a_touch_beside_the_folding_of_its_block_is_not_lost() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        let page = |gfn| GfnRange::new(Gfn::new(gfn), 1).unwrap();
        world.touch(0);
        give_back(&world.space, page(1)).unwrap();
        let guest = world.beside(|world| world.touch(1));
        give_back(&world.space, page(0)).unwrap();
        guest.join().unwrap();
        assert!(world.frame(1).is_some(), "a page that was served is gone");
        assert!(is_returned(&world, 0));
        world.check();
    });
}

#[test]
fn what_is_taken_back_beside_a_touch_is_absent_or_there() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size2M, 6);
        give_back(&world.space, block(0)).unwrap();
        let guest = world.beside(|world| world.store_or_touch(0, 7));
        let taken = take_back(&world.space, block(0)).unwrap();
        guest.join().unwrap();
        assert!(world.value(0) == 7, "a store was lost");
        assert!(taken >= 1, "nobody else takes page 1 back");
        assert!(!is_returned(&world, 1), "a page is still given back");
        world.check();
    });
}
