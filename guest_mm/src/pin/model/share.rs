//! Pins against pages that come to be shared.

use crate::addr::{Gfn, GpaRange, PageSize};
use crate::geometry::FRAME_BYTES;
use crate::model::{World, block, explore, explore_bounded};
use crate::prot::{Access, Prot};
use crate::protect::protect;
use crate::protocol::historical::{
    CountBeforeZap, LookWithoutBarrier, NeverCount, PinWithoutBarrier, PinWithoutMark,
    PinWithoutReadBarrier, RestoreWithoutBarrier, TwoSteps,
};
use crate::protocol::{Protocol, Sound};
use crate::share::{MergeError, drop_zeroes, make_shared, replace};

use super::super::{Pinned, pin};

fn pin_page<P: Protocol>(world: &World<P>, gfn: u64, access: Access) -> Pinned<'_> {
    let page = GpaRange::new(Gfn::new(gfn).gpa(), FRAME_BYTES).unwrap();
    pin(&world.space, page, access, None).expect("the page can be used")
}

/// A page that nobody may write to loses its mark, and its entry is the same afterwards.
fn pin_vs_unexclusive<P: Protocol>() {
    // Its variants need four preemptions, so it has no bound.
    explore(|| {
        let world = World::<P>::new(PageSize::Size4K, 6);
        world.touch(0);
        protect(&world.space, block(0), Prot::R).unwrap();
        let device = world.beside(|world| {
            let pinned = pin_page(world, 0, Access::Read);
            let frame = pinned.first_frame();
            (world.space.pool.frame_state(frame).exclusive, frame)
        });
        let shared = make_shared(&world.space, Gfn::new(0));
        let (alone, frame) = device.join().unwrap();
        match shared {
            Ok(shared) => world.space.pool.release(shared, 1),
            Err(why) => assert!(why == MergeError::Pinned),
        }
        assert!(alone, "a pin is on a page that others use");
        assert!(world.frame(0) == Some(frame), "the guest and its device have parted");
        world.check();
    });
}

#[test]
fn pin_vs_unexclusive_holds() {
    pin_vs_unexclusive::<Sound>();
}

#[test]
fn pin_vs_unexclusive_holds_in_two_steps() {
    pin_vs_unexclusive::<TwoSteps>();
}

#[test]
#[should_panic(expected = "a pin is on a page that others use")]
fn pin_vs_unexclusive_fails_when_the_mark_is_not_looked_at_again() {
    pin_vs_unexclusive::<PinWithoutMark>();
}

#[test]
#[should_panic(expected = "a pin is on a page that others use")]
fn pin_vs_unexclusive_fails_without_a_barrier_behind_the_pin() {
    pin_vs_unexclusive::<PinWithoutBarrier>();
}

#[test]
#[should_panic(expected = "a pin is on a page that others use")]
fn pin_vs_unexclusive_fails_when_the_mark_is_read_before_the_entry() {
    pin_vs_unexclusive::<PinWithoutReadBarrier>();
}

#[test]
#[should_panic(expected = "a pin is on a page that others use")]
fn pin_vs_unexclusive_fails_without_a_barrier_before_the_look() {
    pin_vs_unexclusive::<LookWithoutBarrier>();
}

#[test]
#[should_panic(expected = "a pin is on a page that others use")]
fn pin_vs_unexclusive_fails_when_the_entry_is_back_before_the_mark_is_gone() {
    pin_vs_unexclusive::<RestoreWithoutBarrier>();
}

/// A page is replaced by another of the same bytes while a device writes to it.
fn dedup_vs_pin<P: Protocol>() {
    explore_bounded(|| {
        let world = World::<P>::new(PageSize::Size4K, 6);
        world.touch(0);
        world.touch(1);
        let shared = make_shared(&world.space, Gfn::new(0)).unwrap();
        let device = world.beside(|world| {
            let pinned = pin_page(world, 1, Access::Write);
            world.space.pool.memory().write(pinned.first_frame(), 7);
        });
        let replaced = replace(&world.space, Gfn::new(1), shared);
        device.join().unwrap();
        world.space.pool.release(shared, 1);
        assert!(world.value(1) == 7, "a DMA write was lost");
        assert!(world.value(0) == 0, "a device wrote to a page that others use");
        assert!(matches!(replaced, Ok(()) | Err(MergeError::Pinned | MergeError::Differs)));
        world.check();
    });
}

#[test]
fn dedup_vs_pin_holds() {
    dedup_vs_pin::<Sound>();
}

#[test]
#[should_panic(expected = "a DMA write was lost")]
fn dedup_vs_pin_fails_when_pins_are_counted_before_the_zap() {
    dedup_vs_pin::<CountBeforeZap>();
}

#[test]
#[should_panic(expected = "a DMA write was lost")]
fn dedup_vs_pin_fails_when_pins_are_not_counted() {
    dedup_vs_pin::<NeverCount>();
}

#[test]
fn a_page_of_zeroes_is_dropped_or_pinned() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.touch(0);
        let device = world.beside(|world| {
            let pinned = pin_page(world, 0, Access::Write);
            world.space.pool.memory().write(pinned.first_frame(), 7);
        });
        let dropped = drop_zeroes(&world.space, Gfn::new(0));
        device.join().unwrap();
        assert!(world.value(0) == 7, "a DMA write was lost");
        // What the device wrote shows in the bytes, or in the note of it.
        use MergeError::{Differs, Dirty, Pinned};
        assert!(matches!(dropped, Ok(()) | Err(Pinned | Differs | Dirty)), "{dropped:?}");
        world.check();
    });
}
