//! Requests whose memory is still elsewhere, put aside so that those behind them go on.
//!
//! Requests have no order among each other: a driver that wants one waits for the answer first. A flush too is for
//! writes that were answered before it came (5.2.6.2), and so it may overtake one that is put aside.

use serde::{Deserialize, Serialize};

use crate::dma::{Segment, Wait};
use crate::virtio::queue::{Chain, Queue};

/// A request that was taken from its queue, and nothing else done for it.
#[derive(Debug)]
struct Request {
    queue: u16,
    chain: Chain,
    /// None if it has not been asked for since it was restored.
    wait: Option<Wait>,
}

/// All of a disk's, in the order in which they came.
#[derive(Debug)]
pub(super) struct Aside {
    requests: Vec<Request>,
    most: usize,
    /// How many there were so far.
    pub(super) count: u64,
}

/// One of them as it is saved.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedRequest {
    queue: u16,
    head: u16,
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

impl Aside {
    /// Room for `most`.
    pub(super) fn new(most: u32) -> Aside {
        Aside { requests: Vec::new(), most: most as usize, count: 0 }
    }

    pub(super) fn is_full(&self) -> bool {
        self.requests.len() >= self.most
    }

    /// Puts `chain` of queue `queue` aside until `wait` is over.
    pub(super) fn put(&mut self, queue: u16, chain: Chain, wait: Wait) {
        self.requests.push(Request { queue, chain, wait: Some(wait) });
        self.count += 1;
    }

    /// Puts `chain`, which was taken from here and has to wait for something else, back to where it was.
    pub(super) fn put_back(&mut self, queue: u16, chain: Chain) {
        self.requests.insert(0, Request { queue, chain, wait: None });
    }

    /// Takes the first chain of `queue` whose memory is here by now.
    pub(super) fn take(&mut self, queue: &Queue) -> Option<Chain> {
        for at in 0..self.requests.len() {
            let request = &mut self.requests[at];
            if request.queue != queue.index() || request.wait.as_ref().is_some_and(|w| !w.is_over())
            {
                continue;
            }
            request.wait = queue.fetch(&request.chain);
            if request.wait.is_none() {
                return Some(self.requests.remove(at).chain);
            }
        }
        None
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.requests.clear();
    }

    pub(super) fn save(&self) -> Vec<SavedRequest> {
        let plain = |segments: &[Segment]| segments.iter().map(|s| (s.addr, s.len)).collect();
        let save = |Request { queue, chain, .. }: &Request| SavedRequest {
            queue: *queue,
            head: chain.head,
            readable: plain(&chain.readable),
            writable: plain(&chain.writable),
        };
        self.requests.iter().map(save).collect()
    }

    /// Becomes what was saved of a disk of `queues` queues.
    ///
    /// # Errors
    /// A sentence: no such disk had these.
    pub(super) fn restore(&mut self, saved: Vec<SavedRequest>, queues: u16) -> Result<(), String> {
        let good = |&(addr, len): &(u64, u32)| len > 0 && addr.checked_add(len.into()).is_some();
        let fits = |request: &SavedRequest| {
            request.queue < queues && request.readable.iter().chain(&request.writable).all(good)
        };
        if saved.len() > self.most || !saved.iter().all(fits) {
            return Err("the disk had requests that no driver of it can have made".into());
        }
        let segments = |list: Vec<(u64, u32)>| {
            list.into_iter().map(|(addr, len)| Segment { addr, len }).collect()
        };
        let restore = |saved: SavedRequest| {
            let (readable, writable) = (segments(saved.readable), segments(saved.writable));
            let chain = Chain { head: saved.head, readable, writable };
            Request { queue: saved.queue, chain, wait: None }
        };
        self.requests = saved.into_iter().map(restore).collect();
        Ok(())
    }
}
