//! Memory of a queue that is still elsewhere: what is waited for, and where in the ring.
//!
//! Nothing of a chain is used before all of it is here. A model is shown an end of the ring before a chain that is not; when it
//! has come, its queue is kicked, as if the driver had brought it just then. So what is in a queue stays in order, no model waits, and a
//! device that rests has nothing under way.

use std::sync::Arc;
use std::task::{Wake, Waker};

use vmm_sys_util::eventfd::EventFd;

use crate::dma::{Arrivals, Segment, Wait};

/// Bytes that are asked for together at most, of a hostile chain. A model that uses more of one at once waits for the rest.
const MOST: u64 = 64 << 20;

/// What a queue waits for.
#[derive(Debug)]
pub(super) struct Gate {
    arrivals: Arc<dyn Arrivals>,
    /// Kicks the queue.
    waker: Waker,
    /// The rings are here.
    rings: bool,
    /// The place in the ring before which it ends, and why.
    held: Option<(u16, Wait)>,
}

/// Kicks a queue when what it waits for has come.
struct Kick(EventFd);

impl Wake for Kick {
    fn wake(self: Arc<Self>) {
        // It is full: then it is signalled.
        let _ = self.0.write(1);
    }
}

impl Gate {
    /// For the queue that `kick` kicks.
    pub(super) fn new(arrivals: Arc<dyn Arrivals>, kick: EventFd) -> Gate {
        Gate { arrivals, waker: Waker::from(Arc::new(Kick(kick))), rings: false, held: None }
    }

    /// Whether nothing is waited for, now or later.
    pub(super) fn is_of_no_use(&self) -> bool {
        self.end().is_none() && self.arrivals.are_over()
    }

    /// Asks for what of `segments` is elsewhere.
    pub(super) fn fetch(&self, segments: impl Iterator<Item = Segment>) -> Option<Wait> {
        let mut left = MOST;
        let mut bounded = segments.map_while(|segment| {
            let head = segment.split_at(left.min(segment.len.into()) as u32).0?;
            left -= u64::from(head.len);
            Some(head)
        });
        self.arrivals.fetch(&mut bounded, &self.waker)
    }

    /// Whether the rings are here, which `rings` are; at `place` it goes on when they are.
    pub(super) fn has_rings(&mut self, place: u16, rings: [Segment; 3]) -> bool {
        if !self.rings && self.end().is_none() {
            match self.fetch(rings.into_iter()) {
                Some(wait) => self.hold(place, wait),
                None => (self.rings, self.held) = (true, None),
            }
        }
        self.rings
    }

    /// The ring ends before `place` until `wait` is over.
    pub(super) fn hold(&mut self, place: u16, wait: Wait) {
        self.held = Some((place, wait));
    }

    /// Where the ring ends, if it does before the driver's index.
    pub(super) fn end(&self) -> Option<u16> {
        self.held.as_ref().filter(|held| !held.1.is_over()).map(|held| held.0)
    }

    /// Waits for nothing, and knows nothing of the rings.
    pub(super) fn reset(&mut self) {
        (self.rings, self.held) = (false, None);
    }
}

#[cfg(test)]
mod tests;
