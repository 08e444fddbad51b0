//! A walker against two collectors, on the bare epochs: whatever else orders things in a tree does not help here.
#![allow(unsafe_code, reason = "shares a cell whose accesses the model checker checks")]

use loom::cell::UnsafeCell;

use crate::model::explore_bounded;
use crate::sync::{Arc, AtomicU64, Ordering};

use super::{Epochs, Slot};

struct World {
    epochs: Epochs<Arc<Slot>, ()>,
    walker: Arc<Slot>,
    /// 1 while the thing can be found.
    published: AtomicU64,
    thing: UnsafeCell<()>,
}

// SAFETY: no access goes through the cell's pointer; that two of them do not meet is what the model is for.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

impl World {
    fn new() -> Arc<World> {
        let walker = Arc::new(Slot::new());
        let epochs = Epochs::new(false);
        epochs.slots.lock().push(Arc::clone(&walker));
        let (published, thing) = (AtomicU64::new(1), UnsafeCell::new(()));
        Arc::new(World { epochs, walker, published, thing })
    }

    fn walk(&self) {
        self.epochs.enter(&self.walker);
        if self.published.load(Ordering::Acquire) == 1 {
            self.thing.with(|_| ());
        }
        self.walker.leave();
    }

    fn collect(&self) {
        self.epochs.collect().for_each(|()| self.thing.with_mut(|_| ()));
    }

    fn retire(&self) {
        self.published.store(0, Ordering::Release);
        self.epochs.note(());
        self.collect();
    }
}

/// Does `work` beside what follows.
fn beside(world: &Arc<World>, work: fn(&World)) -> loom::thread::JoinHandle<()> {
    let world = Arc::clone(world);
    loom::thread::spawn(move || work(&world))
}

/// The collector's period is younger than the note and says nothing of what happened before it.
#[test]
fn a_period_that_another_collector_began_tells_of_all_older_notes() {
    explore_bounded(|| {
        let world = World::new();
        let walker = beside(&world, World::walk);
        let collector = beside(&world, World::collect);
        world.retire();
        walker.join().unwrap();
        collector.join().unwrap();
    });
}

/// The second walk hides from the collector that the first is over.
#[test]
fn a_second_walk_tells_that_the_first_is_over() {
    explore_bounded(|| {
        let world = World::new();
        let walker = beside(&world, |world| {
            world.walk();
            world.walk();
        });
        world.retire();
        walker.join().unwrap();
    });
}
