//! Pages that arrive, against what else may happen to their block.

use crate::addr::{Gfn, PageSize};
use crate::collapse::{CollapsePolicy, collapse_block};
use crate::entry::Marker;
use crate::mark::mark;
use crate::model::{IMAGE, World, block, explore_bounded};
use crate::protocol::historical::{HugeOnFirstPage, RetractUnflushed, RetractUnlocked};
use crate::protocol::{Protocol, Sound};

use super::{Content, Placed, place};

fn put<P: Protocol>(world: &World<P>, gfn: u64, word: u64) -> Placed {
    place(&world.space, Gfn::new(gfn).gpa(), Content::Bytes(&word)).unwrap()
}

/// A page arrives in a block that is being given back to its image.
fn place_vs_retract<P: Protocol>() {
    explore_bounded(|| {
        let world = World::<P>::over_image(PageSize::Size4K, 8);
        // A page table, as a store to the other page would leave it behind.
        let page = crate::addr::GfnRange::new(Gfn::new(1), 1).unwrap();
        mark(&world.space, page, Marker::Missing).unwrap();
        world.load(0);
        crate::unmap::unmap(&world.space, page).unwrap();
        let arriving = world.beside(|world| put(world, 1, 7));
        collapse_block(&world.space, block(0), CollapsePolicy::default()).unwrap();
        let placed = arriving.join().unwrap();
        let expected = if placed == Placed::AlreadyThere { IMAGE + 1 } else { 7 };
        assert!(world.value(1) == expected, "a page that was placed is lost");
        assert!(world.load(0) == IMAGE, "the image's page is another");
        world.check();
    });
}

#[test]
fn place_vs_retract_holds() {
    place_vs_retract::<Sound>();
}

#[test]
#[should_panic(expected = "a page that was placed is lost")]
fn place_vs_retract_fails_when_the_table_is_unlocked_before_it_is_detached() {
    place_vs_retract::<RetractUnlocked>();
}

#[test]
#[should_panic(expected = "the window holds a translation that the table has lost")]
fn place_vs_retract_fails_when_a_pass_that_gives_up_does_not_flush() {
    place_vs_retract::<RetractUnflushed>();
}

/// Two pages of a block arrive; the guest reads what is there.
fn huge_map_over_missing<P: Protocol>() {
    explore_bounded(|| {
        let world = World::<P>::new(PageSize::Size4K, 4);
        mark(&world.space, block(0), Marker::Missing).unwrap();
        let arriving = world.beside(|world| put(world, 1, 8));
        put(&world, 0, 7);
        let shown = world.window.translation(Gfn::new(1));
        let read = shown.map(|(frame, _)| world.space.pool.memory().read(frame));
        arriving.join().unwrap();
        assert!(read.is_none_or(|word| word == 8), "the guest reads a page that has not come");
        assert!((world.load(0), world.load(1)) == (7, 8));
        world.check();
    });
}

#[test]
fn huge_map_over_missing_holds() {
    huge_map_over_missing::<Sound>();
}

#[test]
#[should_panic(expected = "the guest reads a page that has not come")]
fn huge_map_over_missing_fails_when_the_block_is_shown_with_its_first_page() {
    huge_map_over_missing::<HugeOnFirstPage>();
}

#[test]
fn two_arrivals_of_one_page_place_it_once() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 4);
        mark(&world.space, block(0), Marker::Missing).unwrap();
        let other = world.beside(|world| put(world, 0, 8));
        let both = [put(&world, 0, 7), other.join().unwrap()];
        assert!(both.contains(&Placed::Here) && both.contains(&Placed::AlreadyThere));
        let found = world.load(0);
        assert!(found == if both[0] == Placed::Here { 7 } else { 8 });
        world.check();
    });
}
