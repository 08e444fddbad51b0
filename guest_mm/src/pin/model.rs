//! Pins against what else may happen to a page.

mod share;

use crate::addr::{Gfn, GpaRange, PageSize};
use crate::collapse::{CollapsePolicy, Collapsed, Skip, collapse_block};
use crate::geometry::{FRAME_BYTES, Level};
use crate::model::{World, block, explore_bounded};
use crate::pool::Owner;
use crate::prot::Access;
use crate::protocol::historical::{FreeWithoutGrace, LookBeforeFreeze, PinWithoutPde};
use crate::protocol::{Protocol, Sound};
use crate::split::split;
use crate::unmap::unmap;

use super::{Pinned, pin};

fn pin_page<P: Protocol>(world: &World<P>, gfn: u64) -> Pinned<'_> {
    let page = GpaRange::new(Gfn::new(gfn).gpa(), FRAME_BYTES).unwrap();
    pin(&world.space, page, Access::Write, None).expect("the page can be used")
}

/// A device writes 7 to a page.
fn dma<P: Protocol>(world: &World<P>, gfn: u64) {
    let pinned = pin_page(world, gfn);
    world.space.pool.memory().write(pinned.first_frame(), 7);
}

fn collapse<P: Protocol>(world: &World<P>) -> Collapsed {
    collapse_block(&world.space, block(0), CollapsePolicy::default()).unwrap()
}

fn pin_vs_collapse<P: Protocol>() {
    explore_bounded(|| {
        let world = World::<P>::new(PageSize::Size4K, 6);
        world.scatter();
        let device = world.beside(|world| dma(world, 0));
        let collapsed = collapse(&world);
        device.join().unwrap();
        assert!(world.value(0) == 7, "a DMA write was lost");
        let pinned = Collapsed::Skipped(Skip::Pinned { gfn: Gfn::new(0) });
        assert!(collapsed == Collapsed::Copied { pages: 2, holes: 0 } || collapsed == pinned);
        world.check();
    });
}

#[test]
fn pin_vs_collapse_holds() {
    pin_vs_collapse::<Sound>();
}

#[test]
#[should_panic(expected = "a DMA write was lost")]
fn pin_vs_collapse_fails_when_the_page_directory_is_not_looked_at_again() {
    pin_vs_collapse::<PinWithoutPde>();
}

#[test]
#[should_panic(expected = "a DMA write was lost")]
fn pin_vs_collapse_fails_when_the_pins_are_looked_at_before_the_freeze() {
    pin_vs_collapse::<LookBeforeFreeze>();
}

fn pin_vs_freed_table<P: Protocol>() {
    explore_bounded(|| {
        let world = World::<P>::new(PageSize::Size4K, 6);
        world.touch(0);
        world.touch(1);
        let device = world.beside(|world| drop(pin_page(world, 0)));
        assert!(matches!(collapse(&world), Collapsed::Promoted { .. }));
        // The other block's table may be the page that the first has lost.
        world.touch(2);
        let other = world.space.pool.frame_state(world.frame(2).unwrap());
        assert!(other.pins == 0, "a pin landed on a frame that its range never had");
        device.join().unwrap();
        world.check();
    });
}

#[test]
fn a_pin_lands_on_frames_of_its_own_range_only() {
    pin_vs_freed_table::<Sound>();
}

#[test]
#[should_panic(expected = "a pin landed on a frame that its range never had")]
fn pin_vs_collapse_fails_when_the_table_is_freed_at_once() {
    pin_vs_freed_table::<FreeWithoutGrace>();
}

#[test]
fn pin_vs_promotion_loses_nothing() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 4);
        world.touch(0);
        world.touch(1);
        let device = world.beside(|world| dma(world, 0));
        assert!(matches!(collapse(&world), Collapsed::Promoted { .. }), "pins do not matter");
        device.join().unwrap();
        assert!(world.value(0) == 7, "a DMA write was lost");
        world.check();
    });
}

#[test]
fn pin_vs_split_loses_nothing() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size2M, 4);
        world.touch(0);
        let device = world.beside(|world| dma(world, 0));
        split(&world.space, block(0), PageSize::Size4K).unwrap();
        device.join().unwrap();
        assert!(world.value(0) == 7, "a DMA write was lost");
        world.check();
    });
}

/// The frame that the device writes to is unmapped, and taken for another page as soon as it is free.
fn pin_vs_reuse(pages: PageSize) {
    explore_bounded(move || {
        let world = World::<Sound>::new(pages, 6);
        world.touch(0);
        let device = world.beside(|world| {
            let pinned = pin_page(world, 0);
            let frame = pinned.first_frame();
            world.space.pool.memory().write(frame, 7);
            let owner = world.space.pool.frame_state(frame).owner;
            assert!(
                matches!(owner, Owner::User | Owner::Orphan),
                "a frame was free while a device had it"
            );
        });
        unmap(&world.space, block(0)).unwrap();
        world.touch(2);
        assert!(world.value(2) == 0, "a device wrote to another's page");
        device.join().unwrap();
        assert!(world.value(2) == 0, "a device wrote to another's page");
        world.check();
    });
}

#[test]
fn pin_vs_reuse_holds() {
    pin_vs_reuse(PageSize::Size4K);
}

#[test]
fn pin_vs_reuse_holds_for_blocks() {
    pin_vs_reuse(PageSize::Size2M);
}

#[test]
fn a_pin_of_the_whole_block_outlives_its_split_and_unmapping() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size2M, 4);
        world.touch(0);
        let device = world.beside(|world| dma(world, 1));
        split(&world.space, block(0), PageSize::Size4K).unwrap();
        unmap(&world.space, crate::addr::GfnRange::entry(Gfn::new(1), Level::PT)).unwrap();
        device.join().unwrap();
        world.check();
    });
}

/// A pin through the huge leaf that comes too late is on the block while the last pin of an orphan goes.
#[test]
fn a_late_pin_of_the_block_leaves_no_orphan() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size2M, 4);
        world.touch(0);
        let device = world.beside(|world| drop(pin_page(world, 1)));
        split(&world.space, block(0), PageSize::Size4K).unwrap();
        let pinned = pin_page(&world, 0);
        unmap(&world.space, crate::addr::GfnRange::entry(Gfn::new(0), Level::PT)).unwrap();
        drop(pinned);
        device.join().unwrap();
        world.check();
    });
}
