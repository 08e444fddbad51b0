//! A page that is waited for, against its arrival and a line that breaks.

mod waits;

use std::sync::atomic::AtomicU64 as Plain;
use std::sync::atomic::Ordering::Relaxed;

use crate::addr::{Gfn, GfnRange, PageSize};
use crate::entry::Marker;
use crate::fault::{Filled, fault};
use crate::mark::mark;
use crate::model::{World, block, explore_bounded};
use crate::place::{Arriving, BlockParcel, Onto, arrive, place_block};
use crate::prot::Access;
use crate::protocol::Sound;
use crate::space::{Answer, Pager};
use crate::sync::Arc;

use super::{Ask, Line, Requests};

/// A line that counts.
#[derive(Clone, Default)]
struct Wire(std::sync::Arc<Plain>);

impl Line for Wire {
    fn ask(&mut self, _: Gfn) -> Ask {
        self.0.fetch_add(1, Relaxed);
        Ask::Out
    }

    fn push(&mut self) -> bool {
        true
    }
}

fn only(gfn: u64) -> GfnRange {
    GfnRange::new(Gfn::new(gfn), 1).unwrap()
}

/// A world whose first block is missing, and who is asked for its pages.
fn world(requests: &Arc<Requests<Wire>>) -> World<Sound> {
    let requests = Arc::clone(requests);
    let mut world = World::<Sound>::new(PageSize::Size4K, 4);
    let space = Arc::get_mut(&mut world.space).expect("nobody has it yet");
    space.pager = Some(Pager(Box::new(move |gpa| requests.want(gpa.gfn()))));
    mark(&world.space, block(0), Marker::Missing).unwrap();
    world
}

/// B1 and B2.
fn come(world: &World<Sound>, requests: &Requests<Wire>, gfn: u64, word: u64) {
    let page = [Arriving::Bytes(&word)].into_iter();
    arrive(&world.space, Gfn::new(gfn), Onto::Missing, page).unwrap();
    requests.arrived(only(gfn), |_, _| {});
}

#[test]
fn two_who_miss_a_page_ask_once_and_find_it() {
    explore_bounded(|| {
        let requests = Arc::new(Requests::new());
        let wire = Wire::default();
        requests.connect(wire.clone());
        let world = world(&requests);
        let other = world.beside(|world| fault(&world.space, Gfn::new(0).gpa(), Access::Read));
        let one = fault(&world.space, Gfn::new(0).gpa(), Access::Read).unwrap();
        let two = other.join().unwrap().unwrap();
        assert!((one, two) == (Filled::Asked, Filled::Asked));
        assert!(wire.0.load(Relaxed) == 1, "a page is asked for twice");
        come(&world, &requests, 0, 7);
        assert!(world.load(0) == 7 && !requests.wants(only(0)));
        world.check();
    });
}

#[test]
fn a_page_that_comes_while_it_is_missed_is_there_or_asked_for() {
    explore_bounded(|| {
        let requests = Arc::new(Requests::new());
        let wire = Wire::default();
        requests.connect(wire.clone());
        let world = world(&requests);
        let missed = world.beside(|world| fault(&world.space, Gfn::new(0).gpa(), Access::Read));
        come(&world, &requests, 0, 7);
        let filled = missed.join().unwrap().unwrap();
        // Whatever it heard, the page is there; a request for it may be open, and its answer changes nothing.
        assert!(filled == Filled::Present || filled == Filled::Asked);
        if requests.wants(only(0)) {
            assert!(wire.0.load(Relaxed) == 1);
            come(&world, &requests, 0, 9);
        }
        assert!(world.load(0) == 7, "a page that was there is replaced");
        assert!(!requests.wants(only(0)), "a note is left");
        world.check();
    });
}

/// The line breaks while a page is missed; there is a new one, and what is open is asked for on it unless that is forgotten.
fn cut(asks_again: bool) {
    explore_bounded(move || {
        let requests = Arc::new(Requests::new());
        let (old, new) = (Wire::default(), Wire::default());
        requests.connect(old);
        let world = world(&requests);
        let missed = world.beside(|world| fault(&world.space, Gfn::new(0).gpa(), Access::Read));
        requests.cut();
        if asks_again {
            requests.connect(new.clone());
        } else {
            requests.forget_cut(new.clone());
        }
        assert!(missed.join().unwrap().unwrap() == Filled::Asked);
        assert!(new.0.load(Relaxed) == 1, "nobody asks for a page that is waited for");
        world.check();
    });
}

#[test]
fn what_is_open_when_the_line_breaks_is_asked_for_again() {
    cut(true);
}

#[test]
#[should_panic(expected = "nobody asks for a page that is waited for")]
fn who_waits_is_forgotten_when_the_new_line_asks_for_nothing() {
    cut(false);
}

#[test]
fn a_block_and_a_page_of_it_that_come_at_once_are_placed_once() {
    explore_bounded(|| {
        let requests = Arc::new(Requests::new());
        let world = world(&requests);
        let other = world.beside(|world| {
            let page = [Arriving::Bytes(&7)].into_iter();
            arrive(&world.space, Gfn::new(1), Onto::Missing, page).unwrap()
        });
        let parcel = BlockParcel::new(&world.space, Gfn::new(0)).unwrap();
        let placed = place_block(&world.space, parcel, Onto::Missing).unwrap();
        let page = other.join().unwrap();
        // One of them came first, and the other found that out.
        assert!(placed.is_ok() != (page.pages == 1), "a page is placed twice");
        drop(placed);
        world.check();
    });
}
