//! The protocols of faulting, unmapping and walking, under every interleaving of two threads on a tree
//! of two levels of two entries, with no bound on preemptions.

use loom::thread;

use crate::addr::{BlockNo, FrameNo, Gfn, GfnRange, PageSize};
use crate::entry::{Entry, Marker};
use crate::geometry::{LEVELS, Level};
use crate::mark::mark;
use crate::mirrors::fake::Fake;
use crate::pool::Pool;
use crate::prot::Access;
use crate::protocol::historical::{FreeWithoutGrace, InstallAfterUnlock, LockWithoutRecheck};
use crate::protocol::{Protocol, Sound};
use crate::space::{AddressSpace, Counters, FaultPolicy, FillLocks, RamRegion};
use crate::sync::Arc;
use crate::table::{Residency, Table};
use crate::tally::Tally;
use crate::unmap::unmap;

use super::fault;

/// Two blocks of two pages, and a frame for each.
fn world<P: Protocol>(pages: PageSize) -> (Arc<AddressSpace<P>>, Fake) {
    let range = GfnRange::new(Gfn::new(0), 4).unwrap();
    let mirror = Fake::new();
    let space = Arc::new(AddressSpace {
        ram: vec![RamRegion { range, origin: BlockNo::new(0) }],
        table: Table::new(&[range]),
        mirror: Box::new(mirror.clone()),
        pool: Arc::new(Pool::model(4)),
        policy: FaultPolicy { pages },
        counters: Counters::default(),
        pin_counts: Tally::new(),
        fill_locks: FillLocks::new(),
    });
    (space, mirror)
}

fn touch<P: Protocol>(space: &AddressSpace<P>, gfn: u64) {
    fault(space, Gfn::new(gfn).gpa(), Access::Write).expect("there is a frame for every page");
}

fn block(index: u64) -> GfnRange {
    GfnRange::new(Gfn::new(2 * index), 2).unwrap()
}

fn window_holds_no_more_than_the_table<P: Protocol>(space: &AddressSpace<P>, mirror: &Fake) {
    for gfn in (0..4).map(Gfn::new) {
        let Some((frame, _)) = mirror.translation(gfn) else { continue };
        let walked = space.table.walk(&space.table.enter(), gfn);
        let translated = match walked.entry {
            Entry::Leaf(leaf) => Some(leaf.frame.add(gfn.offset_in(walked.level.entry_frames()))),
            _ => None,
        };
        assert!(
            translated == Some(frame),
            "the window holds a translation that the table has lost"
        );
    }
}

fn the_books_are_right<P: Protocol>(space: &AddressSpace<P>) {
    let mut found = Residency::default();
    found.tables[LEVELS as usize - 1] = 1;
    let mut frames = 0;
    space.table.visit(|visited| match visited.entry {
        Entry::Leaf(_) => {
            found.leaves[visited.level.number() as usize - 1] += 1;
            frames += visited.level.entry_frames();
        }
        Entry::Table(_) => found.tables[visited.level.number() as usize - 2] += 1,
        _ => {}
    });
    assert!(space.table.residency() == found, "bad resident counter");
    assert!(space.pool.usage().used == frames, "a frame leaked");
}

fn continue_vs_zap<P: Protocol>(pages: PageSize) {
    loom::model(move || {
        let (space, mirror) = world::<P>(pages);
        let faulting = {
            let space = Arc::clone(&space);
            thread::spawn(move || touch(&space, 0))
        };
        unmap(&space, block(0)).unwrap();
        faulting.join().unwrap();
        window_holds_no_more_than_the_table(&space, &mirror);
        the_books_are_right(&space);
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
    loom::model(|| {
        let (space, mirror) = world::<P>(PageSize::Size4K);
        // A table to detach, with nothing of it in the window.
        let page = GfnRange::new(Gfn::new(1), 1).unwrap();
        mark(&space, page, Marker::Guard).unwrap();
        let faulting = {
            let space = Arc::clone(&space);
            thread::spawn(move || touch(&space, 0))
        };
        unmap(&space, block(0)).unwrap();
        faulting.join().unwrap();
        the_books_are_right(&space);
        window_holds_no_more_than_the_table(&space, &mirror);
    });
}

#[test]
fn lock_vs_detach_holds() {
    lock_vs_detach::<Sound>();
}

#[test]
#[should_panic(expected = "non-empty table freed")]
fn lock_vs_detach_fails_when_a_locked_table_is_taken_for_attached() {
    lock_vs_detach::<LockWithoutRecheck>();
}

fn walk_vs_free<P: Protocol>() {
    loom::model(|| {
        let (space, _) = world::<P>(PageSize::Size4K);
        touch(&space, 0);
        let walking = {
            let space = Arc::clone(&space);
            thread::spawn(move || {
                let walked = space.table.walk(&space.table.enter(), Gfn::new(0));
                if let Entry::Leaf(leaf) = walked.entry {
                    let own = walked.level == Level::PT && leaf.frame == FrameNo::new(0);
                    assert!(own, "a walk ended in another range's entry");
                }
            })
        };
        unmap(&space, block(0)).unwrap();
        touch(&space, 2);
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
    loom::model(move || {
        let (space, mirror) = world::<Sound>(pages);
        let other = {
            let space = Arc::clone(&space);
            thread::spawn(move || touch(&space, 0))
        };
        touch(&space, 0);
        other.join().unwrap();
        assert!(
            mirror.translation(Gfn::new(0)).is_some(),
            "a page that was served is in the window"
        );
        window_holds_no_more_than_the_table(&space, &mirror);
        the_books_are_right(&space);
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
