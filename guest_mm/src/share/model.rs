//! Sharing against the guest's stores.

use crate::addr::{Gfn, PageSize};
use crate::model::{World, explore_bounded};
use crate::protocol::Sound;

use super::{MergeError, merge};

#[test]
fn a_merge_against_a_store_loses_nothing() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.touch(0);
        world.touch(1);
        let guest = world.beside(|world| {
            world.store_or_touch(1, 7);
        });
        let merged = merge((&world.space, Gfn::new(0)), (&world.space, Gfn::new(1)));
        guest.join().unwrap();
        assert!(world.value(1) == 7, "a store was lost");
        assert!(world.value(0) == 0, "a store went to a page that others use");
        assert!(matches!(merged, Ok(()) | Err(MergeError::Differs)), "{merged:?}");
        world.check();
    });
}

#[test]
fn two_stores_to_a_shared_page_part_it() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.touch(0);
        world.touch(1);
        merge((&world.space, Gfn::new(0)), (&world.space, Gfn::new(1))).unwrap();
        let other = world.beside(|world| world.store_or_touch(1, 8));
        world.store_or_touch(0, 7);
        other.join().unwrap();
        assert!((world.value(0), world.value(1)) == (7, 8), "a store was lost");
        world.check();
    });
}
