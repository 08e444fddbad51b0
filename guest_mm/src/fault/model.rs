//! The protocols of faulting, unmapping and walking.

use crate::addr::{FrameNo, Gfn, GfnRange, PageSize};
use crate::entry::{Entry, Marker};
use crate::geometry::Level;
use crate::mark::mark;
use crate::model::{IMAGE, World, block, explore, explore_bounded};
use crate::protocol::historical::{
    FreeWithoutGrace, HugeWithoutRecheck, InstallAfterUnlock, LockWithoutRecheck,
    SmallWithoutRecheck,
};
use crate::protocol::{Protocol, Sound};
use crate::split::split;
use crate::unmap::unmap;

fn continue_vs_zap<P: Protocol>(pages: PageSize) {
    explore(move || {
        let world = World::<P>::new(pages, 4);
        let faulting = world.beside(|world| world.touch(0));
        unmap(&world.space, block(0)).unwrap();
        faulting.join().unwrap();
        world.check();
    });
}

#[test]
fn continue_vs_zap_holds() {
    continue_vs_zap::<Sound>(PageSize::Size4K);
}

#[test]
fn continue_vs_zap_holds_for_blocks() {
    continue_vs_zap::<Sound>(PageSize::Size2M);
}

#[test]
#[should_panic(expected = "the window holds a translation that the table has lost")]
fn continue_vs_zap_fails_when_the_install_comes_after_the_unlock() {
    continue_vs_zap::<InstallAfterUnlock>(PageSize::Size4K);
}

fn lock_vs_detach<P: Protocol>() {
    explore(|| {
        let world = World::<P>::new(PageSize::Size4K, 4);
        // A table to detach, with nothing of it in the window.
        let page = GfnRange::new(Gfn::new(1), 1).unwrap();
        mark(&world.space, page, Marker::Guard).unwrap();
        let faulting = world.beside(|world| world.touch(0));
        unmap(&world.space, block(0)).unwrap();
        faulting.join().unwrap();
        world.check();
    });
}

#[test]
fn lock_vs_detach_holds() {
    lock_vs_detach::<Sound>();
}

#[test]
#[should_panic(expected = "bad resident counter")]
fn lock_vs_detach_fails_when_a_locked_table_is_taken_for_attached() {
    lock_vs_detach::<LockWithoutRecheck>();
}

/// A table page comes back as the table of the range that a writer waits for it for, before it hangs in the tree.
#[test]
fn lock_vs_detach_holds_while_a_split_makes_the_table_again() {
    explore_bounded(|| {
        let world = World::<Sound>::new(PageSize::Size2M, 4);
        let page = GfnRange::new(Gfn::new(1), 1).unwrap();
        mark(&world.space, page, Marker::Guard).unwrap();
        let faulting = world.beside(|world| world.touch(0));
        unmap(&world.space, block(0)).unwrap();
        world.touch(0);
        split(&world.space, block(0), PageSize::Size4K).unwrap();
        faulting.join().unwrap();
        world.check();
    });
}

fn walk_vs_free<P: Protocol>() {
    explore(|| {
        let world = World::<P>::new(PageSize::Size4K, 4);
        world.touch(0);
        let walking = world.beside(|world| {
            let walked = world.space.table.walk(&world.space.table.enter(), Gfn::new(0));
            if let Entry::Leaf(leaf) = walked.entry {
                let own = walked.level == Level::PT && leaf.frame == FrameNo::new(0);
                assert!(own, "a walk ended in another range's entry");
            }
        });
        unmap(&world.space, block(0)).unwrap();
        world.touch(2);
        walking.join().unwrap();
    });
}

#[test]
fn walk_vs_free_holds() {
    walk_vs_free::<Sound>();
}

#[test]
#[should_panic(expected = "a walk ended in another range's entry")]
fn walk_vs_free_fails_when_a_table_is_reused_at_once() {
    walk_vs_free::<FreeWithoutGrace>();
}

fn two_faults(pages: PageSize) {
    explore(move || {
        let world = World::<Sound>::new(pages, 4);
        let other = world.beside(|world| world.touch(0));
        world.touch(0);
        other.join().unwrap();
        let shown = world.window.translation(Gfn::new(0));
        assert!(shown.is_some(), "a page that was served is in the window");
        world.check();
    });
}

#[test]
fn two_faults_on_one_page_map_it_once() {
    two_faults(PageSize::Size4K);
}

#[test]
fn two_faults_on_one_block_map_it_once() {
    two_faults(PageSize::Size2M);
}

/// A read that may map the image's block, and a store that must not.
fn huge_vs_small_fault<P: Protocol>() {
    explore_bounded(|| {
        let world = World::<P>::over_image(PageSize::Size2M, 8);
        let storing = world.beside(|world| {
            // If it cannot for all its faults, the books say why.
            let _stored = world.store(0, 7) || {
                world.touch(0);
                world.store(0, 7)
            };
        });
        let read = world.load(1);
        storing.join().unwrap();
        world.check();
        assert!(read == IMAGE + 1, "the image's page is another");
        assert!(world.value(0) == 7, "a store was lost");
    });
}

#[test]
fn huge_vs_small_fault_holds() {
    huge_vs_small_fault::<Sound>();
}

#[test]
#[should_panic(expected = "bad resident counter")]
fn huge_vs_small_fault_fails_when_the_huge_fault_does_not_look_again() {
    huge_vs_small_fault::<HugeWithoutRecheck>();
}

#[test]
#[should_panic(expected = "bad resident counter")]
fn huge_vs_small_fault_fails_when_the_small_fault_does_not_look_again() {
    huge_vs_small_fault::<SmallWithoutRecheck>();
}
