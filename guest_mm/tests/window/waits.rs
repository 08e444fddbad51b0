//! Who waits for pages that are elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::task::{Wake, Waker};

use guest_mm::Answer;
use guest_mm::addr::GpaRange;
use guest_mm::entry::Marker;
use guest_mm::pin::{Cancel, Patience, PinError};
use guest_mm::place::Content;
use guest_mm::prot::Access;
use tests::require_userfaultfd;

use super::*;

const PAGE: u64 = 4096;
const SOON: Duration = Duration::from_secs(20);

/// A guest whose second 2 MiB are elsewhere.
struct Away {
    mm: GuestMm,
    guest: Guest,
    asked: Receiver<u64>,
    lost: Arc<AtomicBool>,
}

impl Away {
    fn new() -> Away {
        let mm = GuestMm::new(BackingChoice::Auto, 8 * MIB, PageSize::Size4K).unwrap();
        let (ask, asked) = channel();
        let (ask, lost) = (Mutex::new(ask), Arc::new(AtomicBool::new(false)));
        let gone = Arc::clone(&lost);
        let guest = mm
            .add_guest(GuestConfig {
                ram: vec![frames(0, 4 * MIB)],
                over: Vec::new(),
                policy: FaultPolicy { pages: PageSize::Size4K },
                fault_threads: 1,
                on_missing: Some(Box::new(move |gpa| {
                    if gone.load(Relaxed) {
                        return Answer::Lost;
                    }
                    ask.lock().unwrap().send(gpa.as_u64()).unwrap();
                    Answer::Asked
                })),
                on_stop: Box::new(|_| {}),
            })
            .unwrap();
        guest.mark(frames(2 * MIB, 2 * MIB), Marker::Missing).unwrap();
        Away { mm, guest, asked, lost }
    }

    /// The next `count` pages that are asked for, by their numbers behind the first that is elsewhere.
    fn asked(&self, count: usize) -> Vec<u64> {
        let next =
            || (self.asked.recv_timeout(SOON).expect("a page is asked for") - 2 * MIB) / PAGE;
        (0..count).map(|_| next()).collect()
    }

    fn come(&self, page: u64) {
        let bytes = [page as u8 + 1; PAGE as usize];
        self.guest.place(at(page), Content::Bytes(&bytes)).unwrap();
    }

    fn close(self) {
        self.guest.close().unwrap();
        self.mm.audit().unwrap();
    }
}

fn frames(start: u64, bytes: u64) -> GfnRange {
    GfnRange::from_bytes(Gpa::new(start), bytes).unwrap()
}

fn at(page: u64) -> Gpa {
    Gpa::new(2 * MIB + page * PAGE)
}

/// `count` pages from `page` on.
fn pages(page: u64, count: u64) -> GpaRange {
    GpaRange::new(at(page), count * PAGE).unwrap()
}

struct Bell(Mutex<Sender<()>>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.lock().unwrap().send(()).unwrap();
    }
}

fn bell() -> (Waker, Receiver<()>) {
    let (ring, rings) = channel();
    (Waker::from(Arc::new(Bell(Mutex::new(ring)))), rings)
}

#[test]
fn a_pin_of_many_pages_asks_for_all_of_them_before_it_waits() {
    if !require_userfaultfd() {
        return;
    }
    let away = Away::new();
    away.come(1);
    std::thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            let pin = away
                .guest
                .pin_within(pages(0, 4), Access::Write, &Patience::for_at_most(SOON))
                .unwrap();
            let mut bytes = Vec::new();
            for slice in pin.slices() {
                let mut part = vec![0; slice.len()];
                slice.copy_to(&mut part[..]);
                bytes.extend(part);
            }
            bytes
        });
        assert_eq!(away.asked(3), [0, 2, 3]);
        [3, 0, 2].into_iter().for_each(|page| away.come(page));
        let bytes = pinned.join().unwrap();
        let firsts: Vec<u8> = bytes.chunks(PAGE as usize).map(|page| page[0]).collect();
        assert_eq!((bytes.len() as u64, firsts), (4 * PAGE, vec![1, 2, 3, 4]));
    });
    assert!(away.asked.try_recv().is_err(), "a page is asked for twice");
    away.close();
}

#[test]
fn who_waits_is_woken_once_when_the_last_of_the_pages_has_come() {
    if !require_userfaultfd() {
        return;
    }
    let away = Away::new();
    let pinner = away.guest.pinner();
    let (waker, rings) = bell();
    let here = GpaRange::new(Gpa::new(0), 8 * PAGE).unwrap();
    assert!(pinner.fetch([here], &waker).is_none(), "what is untouched is here");
    let wait = pinner.fetch([here, pages(0, 2), pages(1, 1), pages(7, 1)], &waker).unwrap();
    assert_eq!(away.asked(3), [0, 1, 7]);
    // Another one waits for one of them, and gives up.
    let (other, others) = bell();
    drop(pinner.fetch([pages(7, 1)], &other).unwrap());
    away.come(0);
    away.come(7);
    assert!(!wait.is_over() && rings.try_recv().is_err());
    // It is given back: nothing to wait for.
    away.guest.give_back(frames(at(1).as_u64(), PAGE)).unwrap();
    rings.recv_timeout(SOON).unwrap();
    assert!(wait.is_over() && rings.try_recv().is_err() && others.try_recv().is_err());
    assert!(pinner.fetch([pages(0, 2)], &waker).is_none());
    drop(pinner);
    away.close();
}

#[test]
fn a_pin_that_sleeps_ends_when_it_is_cancelled_or_the_page_is_lost() {
    if !require_userfaultfd() {
        return;
    }
    let away = Away::new();
    let cancel = Cancel::default();
    let patience = Patience::for_at_most(SOON).or_until(&cancel);
    std::thread::scope(|scope| {
        let sleeper =
            scope.spawn(|| away.guest.pin_within(pages(0, 1), Access::Read, &patience).map(drop));
        away.asked(1);
        cancel.cancel();
        assert_eq!(sleeper.join().unwrap(), Err(PinError::Cancelled { gpa: at(0) }));
        let sleeper = scope.spawn(|| {
            away.guest.pin_within(pages(1, 2), Access::Read, &Patience::for_at_most(SOON)).map(drop)
        });
        away.asked(2);
        away.lost.store(true, Relaxed);
        away.guest.wake(frames(at(1).as_u64(), 2 * PAGE)).unwrap();
        let lost = FaultError::Lost { gpa: at(1), access: Access::Read };
        assert_eq!(sleeper.join().unwrap(), Err(PinError::Fault(lost)));
    });
    away.close();
}
