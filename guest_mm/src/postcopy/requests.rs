//! Who waits for which page, and one request for it however many they are.
//!
//! ```text
//! one-request-per-page    who misses a page (fault thread, pin)    arrival (urgent or bulk stream)
//!                         W1 the entry is missing                  B1 place the page, wake who waits (A1 to A4)
//!                         W2 note it as wanted; who is the         B2 the note goes
//!                            first to do so asks:
//!                         W3 the request goes out, if there
//!                            is a line
//!
//!                                                                  new line, after a broken one
//!                                                                  R1 it is the line from now on
//!                                                                  R2 all that is noted is asked for again
//!
//! Invariant   whoever waits is woken after its page is there. Its access came before W1, so B1 finds it waiting, or W1
//!             finds the page. A note has a request under way, an arrival about to take it away, or R2 before it.
//! Tolerated   W1 before B1 and W2 after B2: a page that is there is asked for. The answer finds nothing missing, takes
//!             the note away and is thrown away.
//! Origin      ours. Linux leaves this to each monitor; QEMU keeps a tree of requested pages for the same reason, so
//!             that a recovered migration asks again.
//! Variant     `forget_cut`: R2 is left out, and who waited when the line broke waits for ever.
//! ```
//!
//! W2 and W3 are one step under one lock, and so are R1 and R2: a request is noted before R2 looks, or goes out on the
//! new line.

#[cfg(all(test, loom))]
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::addr::{Gfn, GfnRange};
use crate::space::Answer;
use crate::sync::{Lock, Rank};

/// Where requests go out.
pub(crate) trait Line: Send {
    /// Asks for the page, without waiting. A line that is broken takes everything: that is found out by who reads from it.
    fn ask(&mut self, gfn: Gfn) -> Ask;

    /// Tries to get requests out that are not; whether all are.
    fn push(&mut self) -> bool;
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// It is out.
    Out,
    /// The line has it, and is to be pushed.
    Queued,
    /// The line has no room for it. It is to be pushed, and then asked again.
    Full,
}

/// The pages that are wanted.
#[derive(Debug)]
pub(crate) struct Requests<L> {
    book: Lock<Book<L>>,
}

#[derive(Debug)]
struct Book<L> {
    line: State<L>,
    /// When each was asked for first.
    wanted: BTreeMap<Gfn, Instant>,
    /// Those of them that the line had no room for.
    unasked: BTreeSet<Gfn>,
    /// Requests that went out.
    asked: u64,
    /// Waits that found their page asked for already.
    joined: u64,
    /// Requests wait in the line.
    queued: bool,
}

#[derive(Debug)]
enum State<L> {
    /// There is none yet, or none any more: what is wanted is asked for later.
    Cut,
    Open(L),
    /// There will be none.
    Lost,
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Asked {
    /// Requests that went out.
    pub(crate) requests: u64,
    /// Waits that found their page asked for already.
    pub(crate) joined: u64,
}

impl<L: Line> Requests<L> {
    /// None, and no line.
    pub(crate) fn new() -> Requests<L> {
        let (wanted, unasked) = (BTreeMap::new(), BTreeSet::new());
        let book = Book { line: State::Cut, wanted, unasked, asked: 0, joined: 0, queued: false };
        Requests { book: Lock::new(Rank::Last, book) }
    }

    /// W2 and W3: somebody waits for the page at `gfn`.
    pub(crate) fn want(&self, gfn: Gfn) -> Answer {
        let book = &mut *self.book.lock();
        if let State::Lost = book.line {
            return Answer::Lost;
        }
        if book.wanted.contains_key(&gfn) {
            book.joined += 1;
            return Answer::Asked;
        }
        book.wanted.insert(gfn, Instant::now());
        book.ask(gfn);
        Answer::Asked
    }

    /// Whether anybody is known to wait for a page of `range`.
    #[cfg(test)]
    pub(crate) fn wants(&self, range: GfnRange) -> bool {
        self.book.lock().wanted.range(range.start()..range.end()).next().is_some()
    }

    /// Those of `range` that somebody is known to wait for.
    pub(crate) fn wanted_in(&self, range: GfnRange) -> Vec<Gfn> {
        let book = self.book.lock();
        book.wanted.range(range.start()..range.end()).map(|(&gfn, _)| gfn).collect()
    }

    /// B2: the pages of `range` are there. Calls `see` with those that were waited for, and how long.
    pub(crate) fn arrived(&self, range: GfnRange, mut see: impl FnMut(Gfn, Duration)) {
        let mut book = self.book.lock();
        while let Some((&gfn, &since)) = book.wanted.range(range.start()..range.end()).next() {
            book.wanted.remove(&gfn);
            book.unasked.remove(&gfn);
            see(gfn, since.elapsed());
        }
    }

    /// R1 and R2: requests go out on `line` from now on, those first that are still open.
    pub(crate) fn connect(&self, line: L) {
        let book = &mut *self.book.lock();
        book.line = State::Open(line);
        book.queued = false;
        book.unasked = book.wanted.keys().copied().collect();
        book.ask_rest();
    }

    /// R1 without R2: the variant.
    #[cfg(all(test, loom))]
    fn forget_cut(&self, line: L) {
        self.book.lock().line = State::Open(line);
    }

    /// Gets requests out that the line did not take at once; whether all are.
    pub(crate) fn push(&self) -> bool {
        let book = &mut *self.book.lock();
        if book.queued
            && let State::Open(line) = &mut book.line
        {
            book.queued = !line.push();
            book.ask_rest();
        }
        !book.queued
    }

    /// The line is broken. Who waits goes on waiting.
    pub(crate) fn cut(&self) {
        let book = &mut *self.book.lock();
        book.queued = false;
        book.unasked.clear();
        if let State::Open(_) = book.line {
            book.line = State::Cut;
        }
    }

    /// There will be no other line. The pages that are waited for: who does has to be woken, and finds out.
    pub(crate) fn give_up(&self) -> Vec<Gfn> {
        let book = &mut *self.book.lock();
        book.line = State::Lost;
        book.unasked.clear();
        std::mem::take(&mut book.wanted).into_keys().collect()
    }

    /// What was asked for so far.
    pub(crate) fn asked(&self) -> Asked {
        let book = self.book.lock();
        Asked { requests: book.asked, joined: book.joined }
    }
}

impl<L: Line> Book<L> {
    /// W3, for a page that is noted.
    fn ask(&mut self, gfn: Gfn) {
        let State::Open(line) = &mut self.line else { return };
        // Those that came before have a right to the room.
        let ask = if self.unasked.is_empty() { line.ask(gfn) } else { Ask::Full };
        self.queued |= ask != Ask::Out;
        match ask {
            Ask::Out | Ask::Queued => self.asked += 1,
            Ask::Full => {
                self.unasked.insert(gfn);
            }
        }
    }

    /// W3, for those that had no room, as far as there is room now.
    fn ask_rest(&mut self) {
        let State::Open(line) = &mut self.line else { return };
        while let Some(&gfn) = self.unasked.first() {
            let ask = line.ask(gfn);
            self.queued |= ask != Ask::Out;
            if ask == Ask::Full {
                break;
            }
            self.unasked.pop_first();
            self.asked += 1;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Wire(Arc<Mutex<Vec<u64>>>);

    impl Line for Wire {
        fn ask(&mut self, gfn: Gfn) -> Ask {
            self.0.lock().unwrap().push(gfn.as_u64());
            Ask::Out
        }

        fn push(&mut self) -> bool {
            true
        }
    }

    impl Wire {
        fn take(&self) -> Vec<u64> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn gfn(at: u64) -> Gfn {
        Gfn::new(at)
    }

    fn only(at: u64) -> GfnRange {
        GfnRange::new(gfn(at), 1).unwrap()
    }

    #[test]
    fn a_page_is_asked_for_once_however_many_wait() {
        let (requests, wire) = (Requests::new(), Wire::default());
        requests.connect(wire.clone());
        for at in [7, 8, 7, 7] {
            assert_eq!(requests.want(gfn(at)), Answer::Asked);
        }
        assert_eq!(wire.take(), [7, 8]);
        assert_eq!(requests.asked(), Asked { requests: 2, joined: 2 });
        let mut waits = 0;
        requests.arrived(only(7), |_, _| waits += 1);
        requests.arrived(only(7), |_, _| waits += 1);
        assert_eq!((waits, requests.wants(only(7)), requests.wants(only(8))), (1, false, true));
    }

    #[test]
    fn what_is_open_is_asked_for_on_the_next_line() {
        let (requests, first, second) = (Requests::new(), Wire::default(), Wire::default());
        requests.want(gfn(1));
        requests.connect(first.clone());
        requests.want(gfn(2));
        requests.cut();
        requests.want(gfn(3));
        requests.arrived(only(2), |_, _| {});
        requests.connect(second.clone());
        assert_eq!((first.take(), second.take()), (vec![1, 2], vec![1, 3]));
    }

    /// A line that has room for `room` requests until it is pushed, and gets all of them out then.
    struct Narrow {
        wire: Wire,
        room: usize,
        queue: Vec<u64>,
    }

    impl Line for Narrow {
        fn ask(&mut self, gfn: Gfn) -> Ask {
            if self.queue.len() == self.room {
                return Ask::Full;
            }
            self.queue.push(gfn.as_u64());
            Ask::Queued
        }

        fn push(&mut self) -> bool {
            self.wire.0.lock().unwrap().append(&mut self.queue);
            true
        }
    }

    /// A line that was full took such a request for one that was out, and who waited for the page waited until it came by
    /// itself.
    #[test]
    fn what_the_line_has_no_room_for_is_asked_when_it_has() {
        let (requests, wire) = (Requests::new(), Wire::default());
        requests.connect(Narrow { wire: wire.clone(), room: 2, queue: Vec::new() });
        (0..5).for_each(|at| assert_eq!(requests.want(gfn(at)), Answer::Asked));
        assert_eq!(requests.asked(), Asked { requests: 2, joined: 0 });
        // It comes by itself meanwhile.
        requests.arrived(only(3), |_, _| {});
        assert!(!requests.push(), "two more were queued");
        assert_eq!(wire.take(), [0, 1]);
        assert!(requests.push());
        assert_eq!(wire.take(), [2, 4]);
        assert_eq!(requests.want(gfn(9)), Answer::Asked);
        assert!(requests.push());
        assert_eq!(wire.take(), [9]);
        assert_eq!(requests.asked().requests, 5);
        // A new line has the same trouble with what is open.
        requests.cut();
        requests.connect(Narrow { wire: wire.clone(), room: 3, queue: Vec::new() });
        while !requests.push() {}
        assert_eq!(wire.take(), [0, 1, 2, 4, 9]);
    }

    #[test]
    fn who_waits_for_what_never_comes_is_told() {
        let requests = Requests::<Wire>::new();
        requests.want(gfn(5));
        assert_eq!(requests.give_up(), [gfn(5)]);
        assert_eq!(requests.want(gfn(6)), Answer::Lost);
        requests.cut();
        assert_eq!(requests.want(gfn(6)), Answer::Lost);
    }
}
