//! Who waits for a page with a ticket, against its arrival: `wait-vs-arrival` ([`crate::wait`]).

use std::task::{Wake, Waker};

use crate::entry::{Entry, Marker};
use crate::fault::fetch;
use crate::place::wake;
use crate::wait::Wait;

use super::*;

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(Plain);

impl Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn bell() -> (std::sync::Arc<Bell>, Waker) {
    let bell = std::sync::Arc::new(Bell::default());
    (std::sync::Arc::clone(&bell), Waker::from(bell))
}

fn pages(count: u64) -> impl Iterator<Item = Gfn> {
    (0..count).map(Gfn::new)
}

/// The variant: N1, N2, and a request without another look.
fn never_look_again(world: &World<Sound>, gfn: Gfn, waker: &Waker) -> Option<Wait> {
    let walked = world.space.table.walk(&world.space.table.enter(), gfn);
    if walked.entry != Entry::Marker(Marker::Missing) {
        return None;
    }
    let mut wait = world.space.waits.begin(waker);
    assert!(wait.note(gfn));
    let pager = world.space.pager.as_ref().expect("it has one");
    assert!((pager.0)(gfn.gpa()) == Answer::Asked);
    wait.seal()
}

/// A page that a vCPU has asked for already comes while `begin` begins to wait for it.
fn comes(begin: impl Fn(&World<Sound>, &Waker) -> Option<Wait> + Send + Sync + 'static) {
    explore_bounded(move || {
        let requests = Arc::new(Requests::new());
        requests.connect(Wire::default());
        let world = world(&requests);
        requests.want(Gfn::new(0));
        let other = {
            let requests = Arc::clone(&requests);
            world.beside(move |world| come(world, &requests, 0, 7))
        };
        let (bell, waker) = bell();
        let wait = begin(&world, &waker);
        other.join().unwrap();
        if let Some(wait) = wait {
            if requests.wants(only(0)) {
                come(&world, &requests, 0, 9);
            }
            assert!(wait.is_over(), "nobody wakes who waits");
            assert!(bell.0.load(Relaxed) == 1, "it is woken once");
        }
        assert!(world.space.waits.is_empty(), "a note is left");
        assert!(world.load(0) == 7);
        world.check();
    });
}

#[test]
fn who_begins_to_wait_while_the_page_comes_is_woken_or_finds_it() {
    comes(|world, waker| fetch(&world.space, pages(1), waker));
}

#[test]
#[should_panic(expected = "nobody wakes who waits")]
fn who_does_not_look_again_sleeps_through_the_arrival() {
    comes(|world, waker| never_look_again(world, Gfn::new(0), waker));
}

#[test]
fn who_waits_for_two_pages_is_woken_once_when_both_are_there() {
    explore_bounded(|| {
        let requests = Arc::new(Requests::new());
        let wire = Wire::default();
        requests.connect(wire.clone());
        let world = world(&requests);
        let other = {
            let requests = Arc::clone(&requests);
            world.beside(move |world| come(world, &requests, 0, 7))
        };
        let (bell, waker) = bell();
        let wait = fetch(&world.space, pages(2), &waker).expect("the second page is not there");
        other.join().unwrap();
        assert!(!wait.is_over() && bell.0.load(Relaxed) == 0, "it is woken too soon");
        assert!(requests.wants(only(1)), "a page is not asked for");
        come(&world, &requests, 1, 8);
        if requests.wants(only(0)) {
            come(&world, &requests, 0, 9);
        }
        assert!(wait.is_over() && bell.0.load(Relaxed) == 1);
        assert!(world.load(0) == 7 && world.load(1) == 8);
        world.check();
    });
}

#[test]
fn who_waits_for_what_never_comes_is_woken_and_finds_out() {
    explore_bounded(|| {
        let requests = Arc::new(Requests::new());
        requests.connect(Wire::default());
        let world = world(&requests);
        let other = {
            let requests = Arc::clone(&requests);
            world.beside(move |world| {
                for gfn in requests.give_up() {
                    wake(&world.space, only(gfn.as_u64())).unwrap();
                }
            })
        };
        let (_, waker) = bell();
        let wait = fetch(&world.space, pages(1), &waker);
        other.join().unwrap();
        assert!(wait.is_none_or(|wait| wait.is_over()), "it waits for ever");
        assert!(fetch(&world.space, pages(1), &waker).is_none());
        assert!(fault(&world.space, Gfn::new(0).gpa(), Access::Read).is_err());
        world.check();
    });
}

#[test]
fn who_stops_waiting_while_the_page_comes_leaves_no_note() {
    explore_bounded(|| {
        let requests = Arc::new(Requests::new());
        requests.connect(Wire::default());
        let world = world(&requests);
        let (_, waker) = bell();
        let wait = fetch(&world.space, pages(1), &waker);
        let other = {
            let requests = Arc::clone(&requests);
            world.beside(move |world| come(world, &requests, 0, 7))
        };
        drop(wait);
        other.join().unwrap();
        assert!(world.space.waits.is_empty(), "a note is left");
        world.check();
    });
}
