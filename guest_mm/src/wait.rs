//! Who waits for pages that are still elsewhere, beside the vCPUs, which the window holds.
//!
//! ```text
//! wait-vs-arrival         who waits (a pin, a device's queue)     arrival (place, wake, an unmap)
//!                         N1 the page is missing                  V1 it is missing no more: published, taken away, or lost
//!                         N2 note it, with a ticket               V2 take the page's notes; a ticket without notes
//!                         N3 look again, and ask: not missing        wakes whoever has it
//!                            any more? then the note goes
//!                         N4 sleep, or go on with other things
//!
//! Invariant   whoever comes to N4 is woken after the page is there. N2 and V2 take one lock: either V2 comes later
//!             and finds the note, or N3 comes later and finds what V1 did.
//! Tolerated   a wake though nothing has changed, or something has and the page is missing still: who is woken begins
//!             again at N1.
//! Origin      ours; it is the order of every sleeper in Linux (`prepare_to_wait`, then the condition, then `schedule`).
//! Variant     `never_look_again`: N3 asks without a look. A page that comes between N1 and N2 wakes nobody, who waits for ever.
//! ```
//!
//! N3 is a fault, under the page table's lock: one request for a page goes out however many wait for it (`one-request-per-page`).
//! A ticket is for any number of pages, so all of them are asked for before anybody waits for the first.

use std::collections::BTreeMap;
use std::sync::Arc as Shared;
use std::task::Waker;

use crate::addr::{Gfn, GfnRange};
use crate::sync::{AtomicU64, Lock, Ordering, Rank};

/// The notes of one guest.
#[derive(Debug)]
pub(crate) struct Waits(Lock<BTreeMap<Gfn, Vec<Shared<Ticket>>>>);

/// What somebody waits with.
#[derive(Debug)]
struct Ticket {
    /// Notes that have it; and one more, until it is known what it waits for.
    left: AtomicU64,
    waker: Waker,
}

impl Ticket {
    /// One note less; whether it was the last.
    fn tear(&self) -> bool {
        // Release, with the acquire of `is_over`.
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// A wait for pages that were asked for. Its waker is woken once, when the last of them has come, or will not; what is there
/// then is to be looked at again. Dropped, it wakes nobody.
#[derive(Debug)]
pub struct Wait {
    waits: Shared<Waits>,
    ticket: Shared<Ticket>,
    /// Those that were noted.
    pages: Vec<Gfn>,
}

impl Waits {
    /// Nobody waits.
    pub(crate) fn new() -> Shared<Waits> {
        Shared::new(Waits(Lock::new(Rank::Last, BTreeMap::new())))
    }

    /// A wait for no page yet.
    pub(crate) fn begin(self: &Shared<Self>, waker: &Waker) -> Wait {
        let ticket = Ticket { left: AtomicU64::new(1), waker: waker.clone() };
        Wait { waits: Shared::clone(self), ticket: Shared::new(ticket), pages: Vec::new() }
    }

    /// V2: who waits for a page of `range` has one less to wait for.
    pub(crate) fn arrived(&self, range: GfnRange) {
        let mut over = Vec::new();
        let mut notes = self.0.lock();
        while let Some((&gfn, _)) = notes.range(range.start()..range.end()).next() {
            let tickets = notes.remove(&gfn).unwrap_or_default();
            over.extend(tickets.into_iter().filter(|ticket| ticket.tear()));
        }
        drop(notes);
        over.iter().for_each(|ticket| ticket.waker.wake_by_ref());
    }

    /// Whether nobody waits.
    #[cfg(all(test, loom))]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

impl Wait {
    /// N2, for one page more; whether it is one: some are named more than once.
    pub(crate) fn note(&mut self, gfn: Gfn) -> bool {
        let mut notes = self.waits.0.lock();
        let tickets = notes.entry(gfn).or_default();
        if tickets.iter().any(|ticket| Shared::ptr_eq(ticket, &self.ticket)) {
            return false;
        }
        // Nobody can tear the last one meanwhile: it is this wait's own.
        self.ticket.left.fetch_add(1, Ordering::Relaxed);
        tickets.push(Shared::clone(&self.ticket));
        drop(notes);
        self.pages.push(gfn);
        true
    }

    /// N3 has found the page that was noted last: it is not waited for.
    pub(crate) fn strike(&mut self) {
        if let Some(gfn) = self.pages.pop()
            && self.waits.forget(gfn, &self.ticket)
        {
            self.ticket.tear();
        }
    }

    /// N4: all pages were noted. None if there is nothing to wait for.
    pub(crate) fn seal(self) -> Option<Wait> {
        (!self.ticket.tear()).then_some(self)
    }

    /// Whether nothing is waited for any more.
    pub fn is_over(&self) -> bool {
        // Acquire, with the release of `tear`: what V1 did is seen.
        self.ticket.left.load(Ordering::Acquire) == 0
    }
}

impl Waits {
    /// Takes the note of `ticket` at `gfn` away; whether it was there.
    fn forget(&self, gfn: Gfn, ticket: &Shared<Ticket>) -> bool {
        let mut notes = self.0.lock();
        let Some(tickets) = notes.get_mut(&gfn) else { return false };
        let Some(at) = tickets.iter().position(|other| Shared::ptr_eq(other, ticket)) else {
            return false;
        };
        tickets.swap_remove(at);
        if tickets.is_empty() {
            notes.remove(&gfn);
        }
        true
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if !self.is_over() {
            for &gfn in &self.pages {
                self.waits.forget(gfn, &self.ticket);
            }
        }
    }
}
