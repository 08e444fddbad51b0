//! Collapses against what else may happen to a block.

use crate::addr::{Gfn, PageSize};
use crate::entry::Entry;
use crate::model::{World, block, explore_bounded};
use crate::prot::Prot;
use crate::protect::protect;
use crate::protocol::Sound;
use crate::unmap::unmap;

use super::{CollapsePolicy, Collapsed, Skip, collapse_block};

fn collapse(world: &World<Sound>, max_holes: u32) -> Collapsed {
    let policy = CollapsePolicy { max_holes, ..CollapsePolicy::default() };
    collapse_block(&world.space, block(0), policy).unwrap()
}

#[test]
fn two_collapses_of_one_block_copy_it_once() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.scatter();
        assert!(world.store(0, 7));
        let other = world.beside(|world| collapse(world, 0));
        let both = [collapse(&world, 0), other.join().unwrap()];
        let copied =
            both.iter().filter(|&&c| c == Collapsed::Copied { pages: 2, holes: 0 }).count();
        let idle = both
            .iter()
            .filter(|&&c| c == Collapsed::AlreadyHuge || c == Collapsed::Skipped(Skip::Busy))
            .count();
        assert!((copied, idle) == (1, 1), "{both:?}");
        assert!(world.value(0) == 7, "a page was lost");
        world.check();
    });
}

#[test]
fn two_promotions_of_one_block_make_one_leaf() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 4);
        world.touch(0);
        world.touch(1);
        let other = world.beside(|world| collapse(world, 0));
        let both = [collapse(&world, 0), other.join().unwrap()];
        assert!(both.contains(&Collapsed::Promoted { holes: 0 }), "{both:?}");
        assert!(both.contains(&Collapsed::AlreadyHuge), "{both:?}");
        world.check();
    });
}

/// The guest writes while its block is gathered elsewhere; its own fault brings a lost translation back.
#[test]
fn collapse_vs_fault_loses_no_store() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.scatter();
        let guest = world.beside(|world| {
            world.store(0, 7) || {
                world.touch(0);
                world.store(0, 7)
            }
        });
        assert!(collapse(&world, 0) == Collapsed::Copied { pages: 2, holes: 0 });
        let stored = guest.join().unwrap();
        assert!(!stored || world.value(0) == 7, "a store was lost");
        world.check();
    });
}

#[test]
fn a_hole_is_filled_by_the_collapse_or_by_the_fault() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 4);
        world.touch(0);
        let guest = world.beside(|world| {
            world.touch(1);
            world.store(1, 7)
        });
        let collapsed = collapse(&world, 1);
        let stored = guest.join().unwrap();
        assert!(matches!(collapsed, Collapsed::Promoted { .. }), "{collapsed:?}");
        assert!(!stored || world.value(1) == 7, "a store was lost");
        world.check();
    });
}

#[test]
fn collapse_vs_protect_keeps_the_rights() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.scatter();
        let other = world.beside(|world| protect(&world.space, block(0), Prot::R).unwrap());
        assert!(collapse(&world, 0) == Collapsed::Copied { pages: 2, holes: 0 });
        other.join().unwrap();
        for gfn in (0..2).map(Gfn::new) {
            let walked = world.space.table.walk(&world.space.table.enter(), gfn);
            let Entry::Leaf(leaf) = walked.entry else { panic!("the page is mapped") };
            assert!(leaf.prot == Prot::R, "a page kept a right that was taken");
            let shown = world.window.translation(gfn);
            assert!(
                shown.is_none_or(|(_, prot)| prot == Prot::R),
                "the window allows what the table does not"
            );
        }
        world.check();
    });
}

#[test]
fn collapse_vs_unmap_leaves_nothing() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size4K, 6);
        world.scatter();
        let other = world.beside(|world| unmap(&world.space, block(0)).unwrap());
        let collapsed = collapse(&world, 0);
        other.join().unwrap();
        assert!(world.frame(0).is_none(), "memory that was taken away is still there");
        assert!(!matches!(collapsed, Collapsed::Promoted { .. }));
        world.check();
    });
}
