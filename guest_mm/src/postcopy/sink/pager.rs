//! Who asks for pages.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::addr::{Gfn, GfnRange, Gpa};
use crate::postcopy::requests::{Ask, Asked, Line, Requests};
use crate::postcopy::stream::{FrameWriter, Sent, StreamError};
use crate::postcopy::transport::WriteHalf;
use crate::postcopy::wire::{Lane, Request};
use crate::space::Answer;

/// Asks for the pages that a guest misses. It is made before the guest, whose [`on_missing`](crate::GuestConfig::on_missing) it is.
#[derive(Debug)]
pub struct Pager {
    requests: Requests<Urgent>,
    /// A request has not gone out whole.
    queued: Arc<Notify>,
}

impl Pager {
    /// One that has nobody to ask yet.
    #[must_use]
    pub fn new() -> Arc<Pager> {
        Arc::new(Pager { requests: Requests::new(), queued: Arc::default() })
    }

    /// What a guest is to call for a page that it misses.
    pub fn on_missing(self: &Arc<Self>) -> Box<dyn Fn(Gpa) -> Answer + Send + Sync> {
        let pager = Arc::clone(self);
        Box::new(move |gpa| pager.requests.want(gpa.gfn()))
    }

    pub(super) fn requests(&self) -> &Requests<Urgent> {
        &self.requests
    }

    /// Requests go out on `writer` from now on.
    pub(super) fn connect(&self, writer: WriteHalf) {
        let writer = FrameWriter::new(writer, Lane::UrgentToSource);
        self.requests.connect(Urgent { writer, queued: Arc::clone(&self.queued) });
    }

    /// Waits until a request has not gone out whole.
    pub(super) async fn queued(&self) {
        self.queued.notified().await;
    }

    /// The urgent stream is gone.
    pub(super) fn cut(&self) {
        self.requests.cut();
    }

    pub(super) fn arrived(&self, pages: GfnRange, see: impl FnMut(Gfn, Duration)) {
        self.requests.arrived(pages, see);
    }

    pub(super) fn asked(&self) -> Asked {
        self.requests.asked()
    }

    pub(super) fn give_up(&self) -> Vec<Gfn> {
        self.requests.give_up()
    }
}

/// The urgent stream's way to the source.
#[derive(Debug)]
pub(super) struct Urgent {
    writer: FrameWriter<WriteHalf>,
    queued: Arc<Notify>,
}

impl Line for Urgent {
    fn ask(&mut self, gfn: Gfn) -> Ask {
        let ask = match self.writer.try_write_request(Request { gfn }) {
            Ok(Sent::Queued) => Ask::Queued,
            Err(StreamError::Full) => Ask::Full,
            // A stream that is broken is found out by who reads from it: then there is another, or none.
            Ok(Sent::Sent) | Err(_) => return Ask::Out,
        };
        self.queued.notify_one();
        ask
    }

    fn push(&mut self) -> bool {
        !matches!(self.writer.try_flush(), Ok(Sent::Queued))
    }
}
